"""A pretrained trunk as downstream tasks use it: one vector an image, or the maps of every level.

Unlike in `mmcd.models.trunks`, whose ResNets leave the max-pool out for fine masks, it stays here: public weights of
pretraining on satellite images (reference systems 2 and 3) were learned and measured with it.
"""

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from mmcd.errors import ModelError
from mmcd.models.moco import pooled_trunk
from mmcd.models.trunk_weights import numbered_to_torchvision
from mmcd.models.trunks import FeatureTrunk, scales_of

_CLASSIFIERS = ("fc.", "classifier.", "head.", "norm.")


class TrunkFeatures(nn.Module):
    """A trunk without its classifier, for any number of bands.

    Args:
        trunk: Which body.
        bands: Names of the bands of an image, in channel order.

    Attributes:
        trunk: Which body.
        bands: Names of the bands.
        width: Length of the vector of an image.
        channels: Channels of the maps by level, 1 (a ResNet's stem) or 2 to 5 from fine to coarse.
        strides: Input pixels a cell by level.
        frozen: Weights and statistics stay, whatever mode the module that holds it is brought to.
        body: The layers, numbered as the public weights of reference system 3.

    Raises:
        ModelError: There is no such trunk.
    """

    def __init__(self, trunk: FeatureTrunk, bands: tuple[str, ...]) -> None:
        super().__init__()
        self.trunk, self.bands, self.frozen = trunk, bands, False
        scales = scales_of(trunk)
        self.body = pooled_trunk(trunk, len(bands))
        self.width = scales.channels[5]
        self.channels = dict(scales.channels)
        residual = trunk.startswith("resnet")
        self.strides = {1: 2, **{level: 2**level for level in range(2, 6)}} if residual else dict(scales.strides)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images (N, C, H, W), averaged over their pixels, shape (N, width)."""
        features: Tensor = self.body(images)
        return features

    def maps(self, images: Tensor) -> dict[int, Tensor]:
        """Return the features of every level, shape (N, channels[level], H / strides[level], W / strides[level]).

        Level 1 is a ResNet's stem after its ReLU. H and W of a ResNet that are no multiple of 32 are rounded up.

        Args:
            images: Shape (N, C, H, W).
        """
        found, features = {}, images
        layers = list(self.body)[:-2]  # without average and flattening
        levels = {2: 1, 4: 2, 5: 3, 6: 4, 7: 5} if self.trunk.startswith("resnet") else {0: 2, 1: 3, 2: 4, 3: 5}
        for number, layer in enumerate(layers):
            features = layer(features)
            if number in levels:
                found[levels[number]] = features
        return found

    def freeze(self) -> Self:
        """Fix weights and statistics for good, and return the trunk."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen trunk stays in evaluation mode, which its statistics are for."""
        return super().train(mode and not self.frozen)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Fill the trunk from weights under torchvision's names; a classifier among them is left out.

        Raises:
            ModelError: They are not this trunk's for these bands, or not complete.
        """
        public = {name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIERS)}
        wanted = self.body.state_dict()
        own = dict(zip(numbered_to_torchvision(wanted, self.trunk), wanted, strict=True))
        given = {own.get(name, name): tensor for name, tensor in public.items()}
        fitting = [name for name in wanted if name in given and given[name].shape == wanted[name].shape]
        if len(fitting) != len(wanted) or len(given) != len(wanted):
            raise ModelError(
                f"The weights match {len(fitting)} of {len(wanted)} tensors of a {self.trunk} for "
                f"{len(self.bands)} bands, {len(given) - len(fitting)} are left over.",
                "Give weights of that trunk, or set start.architecture to what they belong to.",
            )
        self.body.load_state_dict(given)
