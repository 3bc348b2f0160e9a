"""The fusion UNet: features of both images fused at every scale, then one decoder (reference system 1).

The default form is the reference's: one ResNet-50 without max-pool for both images, frozen; concatenation and a 3x3
convolution at five scales. Its state-dict names are the reference's too, so that its checkpoints load.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.errors import ModelError
from mmcd.models.fusion import Fusion, build_fusion
from mmcd.models.trunks import FeatureTrunk, build_stages, scales_of, stage_weights, trunk_of

FUSED_CHANNELS = {1: 64, 2: 128, 3: 256, 4: 512}
DECODED_CHANNELS = {2: 64, 3: 128, 4: 256, 5: 512}
DROPOUT = 0.3
_MULTIPLE = 4
"""Fused channels come in fours, for the heads of attention."""


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
        changed_from: First class that counts as changed, where there are several.
        embed_dim: Fused channels at the coarsest scale.
        levels: Coarsest level that is kept, 3 to 5; the trunk is cut behind it. Each level less quarters the weights of
            a ResNet, and halves how far it sees.
        width: Factor of the fused and decoded channels, ``embed_dim`` included.
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
        changed_from: int = 1,
        embed_dim: int = 512,
        levels: int = 5,
        width: float = 1.0,
        finetune: bool = False,
        frozen_statistics: bool = True,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ModelError(f"A fusion UNet cannot have {classes} classes.", "Give 1 for change, or more.")
        if classes > 1 and not 1 <= changed_from < classes:
            raise ModelError(
                f"Of {classes} classes, those from number {changed_from} cannot be the changed ones.",
                f"Let changed_from be a number from 1 to {classes - 1}.",
            )
        if levels not in (3, 4, 5) or width <= 0:
            raise ModelError(
                f"A fusion UNet cannot have {levels} levels of {width} times the width.",
                "Give 3, 4 or 5 levels and a width above 0.",
            )
        shared = post_trunk is None and pre_channels == post_channels
        self.trunks: dict[str, FeatureTrunk] = {"": trunk} if shared else {"": trunk, "post_": post_trunk or trunk}
        self.bands = {"": pre_channels, "post_": post_channels}
        self.classes, self.changed_from = classes, changed_from
        self.finetune, self.frozen_statistics = finetune, frozen_statistics
        scales = [scales_of(self.trunks[""]), scales_of(self.trunks["" if shared else "post_"])]
        self.coarsest = levels
        self.levels = [level for level in scales[0].channels if level in scales[1].channels and level <= levels]
        self.multiple = max(scale.strides[levels] for scale in scales)
        for prefix, name in self.trunks.items():
            for level, stage in build_stages(name, self.bands[prefix]).items():
                if level <= levels:
                    self.add_module(f"{prefix}encoder{level}", stage.requires_grad_(finetune))
        fused = {level: _widened(FUSED_CHANNELS[level], width) for level in self.levels if level < levels}
        fused[levels] = _widened(embed_dim, width)
        for level in self.levels:
            pair = (scales[0].channels[level], scales[1].channels[level])
            self.add_module(f"fuse{level}", build_fusion(fusion, *pair, fused[level]))
        self._add_decoder(fused, width, halved=scales[0].strides[2] == 2)
        self._random_trunks = set(self.trunks)
        self.train()  # A frozen trunk is in evaluation mode from the beginning, not from the first call of train.
        self.register_load_state_dict_post_hook(_note_loaded)  # type: ignore[no-untyped-call]

    def _add_decoder(self, fused: Mapping[int, int], width: float, halved: bool) -> None:
        """Add the decoders from the coarsest level down to decoder1, which returns to the image's resolution.

        Where level 2 has half of that resolution already, decoder2 keeps it.
        """
        self.dropout = nn.Dropout(DROPOUT)
        below = 0
        for level in range(self.coarsest, 1, -1):
            inputs, outputs = below + fused[level], _widened(DECODED_CHANNELS[level], width)
            same = level == 2 and halved
            decoder = nn.Conv2d(inputs, outputs, 3, padding=1) if same else nn.ConvTranspose2d(inputs, outputs, 2, 2)
            self.add_module(f"decoder{level}", decoder)
            self.add_module(f"decoder{level}_bn", nn.BatchNorm2d(outputs))
            below = outputs
        self.decoder1 = nn.ConvTranspose2d(below + fused.get(1, 0), self.classes, kernel_size=2, stride=2)

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
        return self.decode_features(self.encode(pre, "pre"), self.encode(post, "post"), pre.shape[-2:])

    def encode(self, image: Tensor, side: Literal["pre", "post"]) -> dict[int, Tensor]:
        """Return the features of a normalised image, shape (B, C, H, W), by level, each (B, channels, h, w).

        Args:
            image: The image; any H and W.
            side: Whose trunk.
        """
        prefix = "post_" if side == "post" and "post_" in self.trunks else ""
        return self._features(prefix, self._padded(image))

    def decode_features(self, before: Mapping[int, Tensor], after: Mapping[int, Tensor], size: Sequence[int]) -> Tensor:
        """Return the logits of a pair whose features are at hand, as `forward` returns them.

        Args:
            before: Features of the image before, as `encode` returns them.
            after: The same of the image after.
            size: Height and width of the images.
        """
        height, width = size
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
        for level in (level for level in scales_of(self.trunks[prefix]).channels if level <= self.coarsest):
            image = self.get_submodule(f"{prefix}encoder{level}")(image)
            features[level] = image
        return features

    def _decode(self, skips: dict[int, Tensor]) -> Tensor:
        """Return logits at twice the resolution of the finest scale.

        In the default form: (B, 512, H/8, W/8), (B, 256, H/4, W/4), (B, 128, H/2, W/2), (B, 64, H/2, W/2), logits.
        """
        up = skips[self.coarsest]
        for level in range(self.coarsest, 1, -1):
            if level < self.coarsest:
                # Only the deep skips are dropped out, as in the reference; the coarsest level is none.
                up = torch.cat([up, self.dropout(skips[level]) if level > 2 else skips[level]], dim=1)
            up = self.get_submodule(f"decoder{level}")(up)
            up = F.relu(self.get_submodule(f"decoder{level}_bn")(up))
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


def _widened(channels: int, width: float) -> int:
    """Return a number of channels times the width, rounded to whole fours."""
    return max(_MULTIPLE, round(channels * width / _MULTIPLE) * _MULTIPLE)


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
            "Load its ImageNet weights or a pretrained trunk (--set model.init=NAME), train it too "
            "(--set model.settings.finetune=true), or force it (--set model.force_random_trunk=true).",
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
    found = reference_trunk(tensors)
    if found and found != model.trunks[""]:
        raise ModelError(
            f"The checkpoint is of the trunk {found}, the model has {model.trunks['']}.", f"Set `trunk: {found}`."
        )
    differing = sorted({name.split(".")[0] for name in wanted.keys() ^ tensors.keys() | (wanted.keys() - set(fitting))})
    raise ModelError(
        f"The checkpoint matches {len(fitting)} of {len(wanted)} tensors of the fusion UNet; it differs in "
        f"{', '.join(differing[:6])}.",
        "Set `fusion`, `classes`, `embed_dim`, `levels`, `width` and the numbers of bands as it was trained.",
    )


def reference_trunk(state: Mapping[str, Any]) -> FeatureTrunk | None:
    """Return which trunk a checkpoint of reference system 1 has; None if it has none that is known.

    Args:
        state: State dict, or a dict that holds one.
    """
    tensors = reference_names(state)
    return trunk_of({name[7:]: tensor.shape for name, tensor in tensors.items() if name.startswith("encoder")})


def reference_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the model's names: without wrappers of data parallel or compiled models.

    Args:
        state: State dict, or a dict that holds one.

    Raises:
        ModelError: It is no dict.
    """
    if not isinstance(state, Mapping):
        raise ModelError("The checkpoint holds no weights by name.", "Give a state dict of the fusion UNet.")
    for key in ("model_state_dict", "state_dict"):
        inner = state.get(key)
        if isinstance(inner, Mapping):
            state = inner
    plain = {re.sub(r"^(module\.|_orig_mod\.|model\.)+", "", name): value for name, value in state.items()}
    return {
        re.sub(r"^(fuse\d)\.0\.", r"\1.", name): value for name, value in plain.items() if isinstance(value, Tensor)
    }
