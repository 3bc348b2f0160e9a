"""The fusion UNet: features of both images fused at every scale, then one decoder (reference system 1).

The default form is the reference's: one ResNet-50 without max-pool for both images, frozen; concatenation and a 3x3
convolution at five scales. Its state-dict names are the reference's too, so that its checkpoints load.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.errors import ModelError
from mmcd.models.fusion import Fusion, build_fusion
from mmcd.models.trunks import FeatureTrunk, build_stages, scales_of, stage_weights, trunk_of

FUSED_CHANNELS = {1: 64, 2: 128, 3: 256, 4: 512}
DROPOUT = 0.3


class FusionUNet(nn.Module):
    """A UNet over the fused features of two images; any height and width.

    Args:
        pre_channels: Bands of the image before.
        post_channels: Bands of the image after.
        trunk: Trunk of both images, which then share its weights.
        post_trunk: Trunk of the image after; with one, or with different numbers of bands, each image has a trunk of
            its own: for optical before and SAR after. Features of the second are resized to those of the first where
            their strides differ.
        fusion: How the features of a scale become one.
        classes: 1 has a single logit of change; more have a logit for each class.
        embed_dim: Fused channels at the coarsest scale.
        finetune: Train the trunk too. Otherwise it stays as it is and needs weights: see `refuse_random_trunk`.
        frozen_statistics: A frozen trunk keeps its batch-norm statistics and drops nothing out; False lets the
            statistics move in training, as reference system 1 does.

    Attributes:
        trunk_is_random: Whether a trunk has had no weights loaded yet.
        multiple: Inputs are padded to a multiple of this, pixels.
    """

    def __init__(
        self,
        pre_channels: int = 3,
        post_channels: int = 3,
        *,
        trunk: FeatureTrunk = "resnet50",
        post_trunk: FeatureTrunk | None = None,
        fusion: Fusion = "concat",
        classes: int = 1,
        embed_dim: int = 512,
        finetune: bool = False,
        frozen_statistics: bool = True,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ModelError(f"A fusion UNet cannot have {classes} classes.", "Give 1 for change, or more.")
        shared = post_trunk is None and pre_channels == post_channels
        self.trunks: dict[str, FeatureTrunk] = {"": trunk} if shared else {"": trunk, "post_": post_trunk or trunk}
        self.bands = {"": pre_channels, "post_": post_channels}
        self.classes, self.finetune, self.frozen_statistics = classes, finetune, frozen_statistics
        scales = [scales_of(self.trunks[""]), scales_of(self.trunks["" if shared else "post_"])]
        self.levels = [level for level in scales[0].channels if level in scales[1].channels]
        self.multiple = max(scale.multiple for scale in scales)
        for prefix, name in self.trunks.items():
            for level, stage in build_stages(name, self.bands[prefix]).items():
                self.add_module(f"{prefix}encoder{level}", stage.requires_grad_(finetune))
        for level in self.levels:
            pair = (scales[0].channels[level], scales[1].channels[level])
            self.add_module(f"fuse{level}", build_fusion(fusion, *pair, FUSED_CHANNELS.get(level, embed_dim)))
        self._add_decoder(embed_dim, halved=scales[0].strides[2] == 2)
        self._random_trunks = set(self.trunks)
        self.register_load_state_dict_post_hook(_note_loaded)  # type: ignore[no-untyped-call]

    def _add_decoder(self, embed_dim: int, halved: bool) -> None:
        """Add decoder5 to decoder1; decoder2 keeps the resolution where level 2 has half of the image's already."""
        self.dropout = nn.Dropout(DROPOUT)
        self.decoder5 = nn.ConvTranspose2d(embed_dim, 512, kernel_size=2, stride=2)
        self.decoder5_bn = nn.BatchNorm2d(512)
        self.decoder4 = nn.ConvTranspose2d(512 + FUSED_CHANNELS[4], 256, kernel_size=2, stride=2)
        self.decoder4_bn = nn.BatchNorm2d(256)
        self.decoder3 = nn.ConvTranspose2d(256 + FUSED_CHANNELS[3], 128, kernel_size=2, stride=2)
        self.decoder3_bn = nn.BatchNorm2d(128)
        inputs = 128 + FUSED_CHANNELS[2]
        self.decoder2 = (
            nn.Conv2d(inputs, 64, kernel_size=3, padding=1) if halved else nn.ConvTranspose2d(inputs, 64, 2, stride=2)
        )
        self.decoder2_bn = nn.BatchNorm2d(64)
        finest = FUSED_CHANNELS[1] if 1 in self.levels else 0
        self.decoder1 = nn.ConvTranspose2d(64 + finest, self.classes, kernel_size=2, stride=2)

    @property
    def trunk_is_random(self) -> bool:
        """Whether a trunk has had no weights loaded yet."""
        return bool(self._random_trunks)

    def train(self, mode: bool = True) -> "FusionUNet":
        """Set the mode; a frozen trunk with frozen statistics stays in evaluation mode."""
        super().train(mode)
        if not self.finetune and self.frozen_statistics:
            for stage in self._stages().values():
                stage.eval()
        return self

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return logits, shape (B, classes, H, W), float32: of change, or of each class (their softmax sums to 1).

        Args:
            pre: Normalised image before, shape (B, C1, H, W), float32; any H and W.
            post: Normalised image after, shape (B, C2, H, W).
        """
        height, width = pre.shape[-2:]
        before = self._features("", self._padded(pre))
        after = self._features("post_" if "post_" in self.trunks else "", self._padded(post))
        skips = {}
        for level in self.levels:
            other = after[level]
            if other.shape[-2:] != before[level].shape[-2:]:
                other = F.interpolate(other, before[level].shape[-2:], mode="bilinear", align_corners=False)
            skips[level] = self.get_submodule(f"fuse{level}")(before[level], other)
        return self._decode(skips)[..., :height, :width].float()

    def _padded(self, image: Tensor) -> Tensor:
        """Return the image continued by its last row and column up to a size that every scale divides."""
        missing = [-length % self.multiple for length in image.shape[-2:]]
        return F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else image

    def _features(self, prefix: str, image: Tensor) -> dict[int, Tensor]:
        features = {}
        for level in scales_of(self.trunks[prefix]).channels:
            image = self.get_submodule(f"{prefix}encoder{level}")(image)
            features[level] = image
        return features

    def _decode(self, skips: dict[int, Tensor]) -> Tensor:
        """Return logits at twice the resolution of the finest scale; comments hold for the default form."""
        up = F.relu(self.decoder5_bn(self.decoder5(skips[5])))  # (B, 512, H/8, W/8)
        up = torch.cat([up, self.dropout(skips[4])], dim=1)
        up = F.relu(self.decoder4_bn(self.decoder4(up)))  # (B, 256, H/4, W/4)
        up = torch.cat([up, self.dropout(skips[3])], dim=1)
        up = F.relu(self.decoder3_bn(self.decoder3(up)))  # (B, 128, H/2, W/2)
        up = F.relu(self.decoder2_bn(self.decoder2(torch.cat([up, skips[2]], dim=1))))  # (B, 64, H/2, W/2)
        if 1 in skips:
            up = torch.cat([up, skips[1]], dim=1)
        return self.decoder1(up)  # type: ignore[no-any-return]

    def _stages(self, prefixes: tuple[str, ...] = ("", "post_")) -> dict[str, nn.Module]:
        pattern = re.compile(rf"({'|'.join(prefixes)})encoder\d")
        return {name: module for name, module in self.named_children() if pattern.fullmatch(name)}

    def load_trunk(self, public: Mapping[str, Tensor], side: Literal["pre", "post", "both"] = "both") -> None:
        """Fill a trunk with public weights, such as torchvision's for ImageNet.

        Args:
            public: State dict as torchvision names it; read by the caller, nothing is fetched.
            side: Whose trunk; ``both`` where the images share one or both are of one kind.

        Raises:
            ModelError: The weights belong to another trunk or are not complete.
        """
        sides = {"pre": ("",), "post": tuple(p for p in self.trunks if p) or ("",), "both": tuple(self.trunks)}[side]
        for prefix in sides:
            stages = nn.ModuleDict({name[-1]: stage for name, stage in self._stages((prefix,)).items()})
            stages.load_state_dict(stage_weights(self.trunks[prefix], public, stages.state_dict()))
            self._random_trunks.discard(prefix)


def _note_loaded(model: FusionUNet, keys: Any) -> None:
    """Remember that the trunks were loaded, unless some of their tensors were missing."""
    if not any("encoder" in name for name in keys.missing_keys):
        model._random_trunks.clear()


def refuse_random_trunk(model: FusionUNet, force: bool = False) -> None:
    """Refuse to train on a frozen trunk that never saw weights: its features mean nothing.

    Args:
        model: A model about to be trained.
        force: Train all the same, for a test of the machinery.

    Raises:
        ModelError: The trunk is frozen and random.
    """
    if model.trunk_is_random and not model.finetune and not force:
        names = " and ".join(dict.fromkeys(model.trunks.values()))
        raise ModelError(
            f"The trunk ({names}) is frozen and has no pretrained weights: it would stay random.",
            "Load its ImageNet weights, train it too with finetune: true, or force it.",
        )


def load_reference(model: FusionUNet, state: Mapping[str, Any]) -> None:
    """Fill a model from a checkpoint of reference system 1, or of this project; every tensor must fit.

    Args:
        model: A model of the form that the checkpoint belongs to.
        state: State dict, or a dict that holds one as ``model_state_dict`` or ``state_dict``; read by the caller.

    Raises:
        ModelError: The checkpoint is of another trunk, another form or no fusion UNet.
    """
    tensors = reference_names(state)
    wanted = model.state_dict()
    fitting = [name for name in wanted if name in tensors and tensors[name].shape == wanted[name].shape]
    if len(fitting) == len(wanted) == len(tensors):
        model.load_state_dict(tensors)
        return
    found = trunk_of({name[7:]: tensor.shape for name, tensor in tensors.items() if name.startswith("encoder")})
    if found and found != model.trunks[""]:
        raise ModelError(
            f"The checkpoint is of the trunk {found}, the model has {model.trunks['']}.", f"Set `trunk: {found}`."
        )
    differing = sorted({name.split(".")[0] for name in wanted.keys() ^ tensors.keys() | (wanted.keys() - set(fitting))})
    raise ModelError(
        f"The checkpoint matches {len(fitting)} of {len(wanted)} tensors of the fusion UNet; it differs in "
        f"{', '.join(differing[:6])}.",
        "Set `fusion`, `classes`, `embed_dim` and the numbers of bands as it was trained.",
    )


def reference_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the model's names: without wrappers of data parallel or compiled models.

    Args:
        state: State dict, or a dict that holds one.
    """
    for key in ("model_state_dict", "state_dict"):
        inner = state.get(key)
        if isinstance(inner, Mapping):
            state = inner
    plain = {re.sub(r"^(module\.|_orig_mod\.|model\.)+", "", name): value for name, value in state.items()}
    return {
        re.sub(r"^(fuse\d)\.0\.", r"\1.", name): value for name, value in plain.items() if isinstance(value, Tensor)
    }
