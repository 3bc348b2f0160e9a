"""The pseudo-siamese network: two encoders of one shape and separate weights, compared ROI by ROI and pixel by pixel.

Two forms share the words of reference system 0. `PseudoSiamese` (dense) encodes a whole tile once, pools every
16 px ROI and decodes a logit for each pixel. `ContextSiamese` is the reference: one vector for the mean of a 256 px
context, patch by patch or, with the same weights, densely.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.models.encoders import (
    SKIP2_CHANNELS,
    SKIP4_CHANNELS,
    STAGE_CHANNELS,
    Branch,
    Encoder,
    Span,
    TrunkName,
    conv_block,
    nearest,
)

ROI = 16
CONTEXT = 256
EMBEDDING_STRIDE = 8
LATTICE = 16


ContextPool = Literal["global", "roi_centre"]
CONTEXT_POOLS: tuple[ContextPool, ...] = get_args(ContextPool)
"""What of a context the reference form's embedding is the mean of: all of it, or the ROI in its middle."""


class SiameseOutput(NamedTuple):
    """What the dense form says of a pair of tiles.

    Attributes:
        logit: Logit of change of every pixel, shape (B, 1, H, W), float32.
        distance: ``1 - cosine`` of the ROI that is centred nearest to each pixel, shape (B, 1, H, W), in [0, 2].
        pre_embedding: Unit vectors of the ROIs whose top left corner is at multiples of 8 px,
            shape (B, D, H/8, W/8).
        post_embedding: The same of the other branch.
        classes: Logits of the classes, shape (B, K, H, W), float32; None for a head that only knows change.
    """

    logit: Tensor
    distance: Tensor
    pre_embedding: Tensor
    post_embedding: Tensor
    classes: Tensor | None = None


class ContextOutput(NamedTuple):
    """What the reference form says: embeddings of 256 px contexts and their distance.

    Attributes:
        distance: ``1 - cosine`` in [0, 2], shape (B, 1) for patches, (B, 1, H/8, W/8) densely.
        pre_embedding: Unit vectors, shape (B, D) for patches, (B, D, H/8, W/8) densely.
        post_embedding: The same of the other branch.
        pre_features: Vectors of the encoder that the embeddings are projected from, shape (B, 512) for patches,
            (B, 512, H/8, W/8) densely.
        post_features: The same of the other branch.
    """

    distance: Tensor
    pre_embedding: Tensor
    post_embedding: Tensor
    pre_features: Tensor
    post_features: Tensor


class Decoder(nn.Module):
    """Per-pixel logits from both branches, fused at strides 8, 4 and 2.

    The fusion at stride 8 is 1x1, upsampling is nearest: a 3x3 there would push the reach beyond 128 px.

    Args:
        width: Channels of each branch's pyramid.
        outputs: Logits of a pixel.
    """

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.fuse8 = nn.Sequential(conv_block(2 * width, 128, kernel_size=1), conv_block(128, 64, kernel_size=1))
        self.fuse4 = conv_block(64 + 2 * SKIP4_CHANNELS, 32, kernel_size=3)
        self.fuse2 = conv_block(32 + 2 * SKIP2_CHANNELS, 32, kernel_size=3)
        self.logit = nn.Conv2d(32, outputs, kernel_size=1)

    def forward(self, pyramid: Tensor, skip4: Tensor, skip2: Tensor) -> Tensor:
        """Return logits of shape (B, outputs, H, W), float32, from both branches' features along the channel axis."""
        fused = nearest(self.fuse8(pyramid))  # (B, 64, H/4, W/4)
        fused = nearest(self.fuse4(torch.cat([fused, skip4], dim=1)))  # (B, 32, H/2, W/2)
        logit = self.logit(self.fuse2(torch.cat([fused, skip2], dim=1))).float()
        return F.interpolate(logit, scale_factor=2, mode="bilinear", align_corners=False)

    @staticmethod
    def span(pixels: Span) -> tuple[Span, Span, Span]:
        """Return the cells at strides 2, 4 and 8 that an interval of output pixels depends on."""
        at2 = pixels.bilinear().grown(1)
        at4 = at2.coarse().grown(1)
        return at2, at4, at4.coarse()


class PseudoSiamese(nn.Module):
    """The dense form: two ResNets cut after ``layer3``, ROI embeddings at stride 8 and a light fused decoder.

    Args:
        pre_channels: Bands of the image before, 1 to 13.
        post_channels: Bands of the image after, 1 to 13.
        trunk: ResNet-18 or ResNet-34.
        width: Channels of the feature pyramids.
        embedding_dim: Length of the ROI embeddings.
        dilated: Keep ``layer3`` at stride 8, so that a crop centred on an ROI equals the tile at every 8 px instead
            of every 16 px. Loads the weights of the other form.
        classes: Classes of the head; 1 has a single logit of change.
        changed_from: First class that counts as changed, for a head of several classes: of background, intact,
            damaged and destroyed it is 2.

    Attributes:
        halo: Pixels of context around a block after which its outputs no longer change, a multiple of 16.
        classes: Classes of the head.
        embedding_dim: Length of the ROI embeddings.
    """

    def __init__(
        self,
        pre_channels: int,
        post_channels: int,
        trunk: TrunkName = "resnet18",
        width: int = 128,
        embedding_dim: int = 128,
        dilated: bool = False,
        classes: int = 1,
        changed_from: int = 1,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.changed_from = changed_from
        self.embedding_dim = embedding_dim
        self.pre = Branch(pre_channels, trunk, width, dilated)
        self.post = Branch(post_channels, trunk, width, dilated)
        self.pre_projector = nn.Conv2d(width, embedding_dim, kernel_size=1)
        self.post_projector = nn.Conv2d(width, embedding_dim, kernel_size=1)
        self.decoder = Decoder(width, classes)
        self.halo = _round_up(self._reach())

    def forward(self, pre: Tensor, post: Tensor) -> SiameseOutput:
        """Compare two aligned tiles.

        Args:
            pre: Normalised image before, shape (B, C1, H, W), H and W multiples of 16.
            post: Normalised image after, shape (B, C2, H, W).
        """
        before, after = self.pre(pre), self.post(post)
        logits = self.decoder(*(torch.cat(pair, dim=1) for pair in zip(before, after, strict=True)))
        pre_embedding = _unit(self.pre_projector(pool_roi(before.pyramid)))
        post_embedding = _unit(self.post_projector(pool_roi(after.pyramid)))
        distance = 1 - (pre_embedding * post_embedding).sum(dim=1, keepdim=True)
        pixels = roi_to_pixels(distance)
        if logits.shape[1] == 1:
            return SiameseOutput(logits, pixels, pre_embedding, post_embedding)
        change = change_logit(logits, self.changed_from)
        return SiameseOutput(change, pixels, pre_embedding, post_embedding, logits)

    def embed(self, image: Tensor, side: Literal["pre", "post"]) -> Tensor:
        """Return the unit vectors of the ROIs of one image alone, the same as `forward` compares.

        Args:
            image: Normalised image, shape (B, C, H, W), H and W multiples of 16.
            side: Whether it is the image before or after.

        Returns:
            Shape (B, D, H/8, W/8), float32.
        """
        branch, projector = (self.pre, self.pre_projector) if side == "pre" else (self.post, self.post_projector)
        return _unit(projector(pool_roi(branch(image).pyramid)))

    def _reach(self) -> int:
        """Return the largest distance from an output pixel to an input pixel it depends on."""
        reach = 0
        for pixel in range(LATTICE):  # the network repeats itself every 16 px
            seen = self._span(Span(pixel, pixel))
            reach = max(reach, pixel - seen.low, seen.high - pixel)
        return reach

    def _span(self, pixels: Span) -> Span:
        at2, at4, at8 = Decoder.span(pixels)
        encoder = self.pre.encoder
        seen = encoder.span(0, at2).join(encoder.span(1, at4)).join(self.pre.span(at8))
        first, last = ((edge - ROI // 4) // EMBEDDING_STRIDE for edge in (pixels.low, pixels.high))
        return seen.join(self.pre.span(Span(first, last + 1)))


def change_logit(classes: Tensor, changed_from: int) -> Tensor:
    """Return the logit of "one of the changed classes", shape (B, 1, H, W), from class logits (B, K, H, W).

    Its sigmoid is the sum of the softmax over the changed classes.
    """
    unchanged, changed = classes[:, :changed_from], classes[:, changed_from:]
    return changed.logsumexp(dim=1, keepdim=True) - unchanged.logsumexp(dim=1, keepdim=True)


def pool_roi(features: Tensor) -> Tensor:
    """Return the mean of every 16 px ROI, shape (B, C, H/8, W/8), of features at stride 8 of the same shape.

    Cell (i, j) is the ROI whose top left corner is at pixel (8 i, 8 j); the last row and column, whose ROIs leave the
    tile, repeat the edge.
    """
    return F.avg_pool2d(F.pad(features, (0, 1, 0, 1), mode="replicate"), kernel_size=2, stride=1)


def roi_to_pixels(values: Tensor) -> Tensor:
    """Return for every pixel the value of the ROI centred nearest to it, shape (B, C, H, W) from (B, C, H/8, W/8).

    An ROI's centre square is the 8 px around its middle, so the nearest upsampling is shifted by 4 px.
    """
    shift = (ROI - EMBEDDING_STRIDE) // 2
    pixels = F.interpolate(values, scale_factor=EMBEDDING_STRIDE, mode="nearest")
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (shift, 0, shift, 0), mode="replicate")[..., :height, :width]


class Projector(nn.Module):
    """Two linear layers with batch norm between, as in reference system 0; for vectors and, densely, for maps.

    Args:
        inputs: Length of the encoder's vector.
        outputs: Length of the embedding.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(inputs, inputs), nn.BatchNorm1d(inputs), nn.ReLU(inplace=True))
        self.layer2 = nn.Sequential(nn.Linear(inputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Project vectors (B, C) or every cell of a map (B, C, H, W)."""
        if features.ndim == 2:
            return self.layer2(self.layer1(features))  # type: ignore[no-any-return]
        batch, _, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        return self.forward(cells).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class ContextSiamese(nn.Module):
    """The network of reference system 0: the embedding is a projection of the mean over a 256 px context.

    Parameter names are the reference's, so its weights load as they are; here the optical branch is the image
    before, the SAR branch the image after. ``layer3`` and ``layer4`` keep stride 1 without dilation.

    Args:
        pre_channels: Bands of the image before.
        post_channels: Bands of the image after.
        trunk: ResNet-18 or ResNet-34.
        embedding_dim: Length of the embeddings.
        form: ``patch`` takes contexts of 256 px and answers once for each; ``dense`` takes a tile and answers at
            every 8 px. Both load the same weights and agree but for the zero padding at the border of each patch.
        pool: ``global`` averages the whole context, so that neighbouring ROIs answer nearly alike, as in the
            reference; ``roi_centre`` averages the cells of the ROI in its middle.
        context: Side of the contexts in pixels; exceeds the ROI by a multiple of 16.
    """

    def __init__(
        self,
        pre_channels: int,
        post_channels: int,
        trunk: TrunkName = "resnet34",
        embedding_dim: int = 128,
        form: Literal["patch", "dense"] = "patch",
        pool: ContextPool = "global",
        context: int = CONTEXT,
    ) -> None:
        super().__init__()
        self.form, self.pool, self.context = form, pool, context
        self.optical_encoder = Encoder(pre_channels, trunk, levels=4, deep="kept")
        self.sar_encoder = Encoder(post_channels, trunk, levels=4, deep="kept")
        self.optical_projector = Projector(STAGE_CHANNELS[4], embedding_dim)
        self.sar_projector = Projector(STAGE_CHANNELS[4], embedding_dim)

    def forward(self, pre: Tensor, post: Tensor) -> ContextOutput:
        """Compare contexts of shape (B, C, 256, 256), or a tile of shape (B, C, H, W) in the dense form."""
        optical = self._pooled(self.optical_encoder(pre)[-1])
        sar = self._pooled(self.sar_encoder(post)[-1])
        before, after = _unit(self.optical_projector(optical)), _unit(self.sar_projector(sar))
        distance = 1 - (before * after).sum(dim=1, keepdim=True)
        return ContextOutput(distance.clamp(0, 2), before, after, optical, sar)  # rounding leaves [0, 2] by 1e-7

    def _pooled(self, features: Tensor) -> Tensor:
        """Return one vector for every context: (B, C) from patches, (B, C, H/8, W/8) from a tile."""
        if self.form == "dense":
            return mean_of_context(features, self.context) if self.pool == "global" else pool_roi(features)
        return features.mean(dim=(2, 3)) if self.pool == "global" else _mean_of_centre(features)


def _mean_of_centre(features: Tensor) -> Tensor:
    """Return the mean over the ROI in the middle of each context: the central 2 x 2 cells at stride 8."""
    first, cells = features.shape[-1] // 2 - 1, ROI // EMBEDDING_STRIDE
    centre = slice(first, first + cells)
    return features[..., centre, centre].mean(dim=(2, 3))


def mean_of_context(features: Tensor, context: int = CONTEXT) -> Tensor:
    """Return the mean over the context of every ROI, same shape as the features at stride 8.

    The context of the ROI at cell i begins 120 px before it: cells i - 15 to i + 16 of 256 px. Beyond the tile there is
    nothing to average, so fewer cells count there.
    """
    cells = context // EMBEDDING_STRIDE
    lead = (context - ROI) // 2 // EMBEDDING_STRIDE
    pad = (lead, cells - 1 - lead, lead, cells - 1 - lead)
    inside = torch.ones_like(features[:1, :1])
    total, count = (_box_sum(F.pad(values, pad), cells) for values in (features, inside))
    return total / count


def _box_sum(values: Tensor, size: int) -> Tensor:
    """Return the sums over ``size`` x ``size`` windows at stride 1, one axis after the other."""
    rows = F.avg_pool2d(values, (size, 1), stride=1) * size
    return F.avg_pool2d(rows, (1, size), stride=1) * size


def _unit(vectors: Tensor) -> Tensor:
    """Return float32 vectors of length one along axis 1."""
    return F.normalize(vectors.float(), dim=1)


def _round_up(pixels: int) -> int:
    return -(-pixels // LATTICE) * LATTICE
