"""Features of whole images: of one image or of groups of bands, textures beside them, in memory where they stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mmcd.data.band_groups import group_places, groups_of, select_groups
from mmcd.data.texture import band_texture, texture_histograms
from mmcd.errors import DataError
from mmcd.geo.sensors import standard_name
from mmcd.models.devices import choose_device, choose_precision
from mmcd.models.trunk_features import TrunkFeatures
from mmcd.training.downstream import RunPlace
from mmcd.training.probe_config import ProbeConfig
from mmcd.training.trunk_start import TrunkScaling

BINS = 16
"""Codes of texture that are counted; reference system 2 leaves out the last two of 18."""

FEATURE_BATCH = 256
"""Images that a fixed trunk sees at once."""


class ProbeImages(Protocol):
    """Images of one part with their labels."""

    @property
    def bands(self) -> Sequence[str]:
        """Standard names of the bands, in channel order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, shape (C, H, W), float32, and its label."""
        ...


class ProbeFeatures(nn.Module):
    """Images to features of groups and textures.

    Args:
        config: Which groups, which textures.
        trunk: The trunk.
        scaling: How the trunk wants its values, None where they are prepared already, in [0, 1].
        bands: Bands of the images, in channel order.

    Raises:
        DataError: The images lack a band.
    """

    places: Tensor

    def __init__(
        self, config: ProbeConfig, trunk: TrunkFeatures, scaling: TrunkScaling | None, bands: Sequence[str]
    ) -> None:
        super().__init__()
        self.trunk, self.scaling, self.head = trunk, scaling, config.head
        if config.head.groups is not None:
            places = group_places(groups_of(config.head.groups), bands)
        else:
            places = band_places(config.head.bands, bands)
        self.register_buffer("places", places, persistent=False)
        self.textures = len(bands) * BINS if config.head.texture else 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, G, F) and textures (N, T) of images (N, C, H, W)."""
        groups = select_groups(images, self.places)  # (N, G, C', H, W)
        stacked = groups.flatten(0, 1)
        features = self.trunk(stacked if self.scaling is None else self.scaling(stacked))
        return features.unflatten(0, groups.shape[:2]), self._textures(images)

    def _textures(self, images: Tensor) -> Tensor:
        if not self.head.texture:
            return images.new_zeros(len(images), 0)
        unit = images if self.scaling is None else (images / 255).clamp(0, 1)
        counts = texture_histograms(band_texture(unit), BINS)
        return counts if self.head.texture_scale == "batch" else counts / (images.shape[-2] * images.shape[-1])


def band_places(wanted: Sequence[str], bands: Sequence[str]) -> Tensor:
    """Return where bands lie in an image, as one group, shape (1, C), int64.

    Raises:
        DataError: The image lacks one.
    """
    names = [standard_name(band) or band for band in wanted]
    missing = [name for name in names if name not in bands]
    if missing:
        raise DataError(
            f"There is no band {', '.join(missing)} among {', '.join(bands)}.", "Correct head.bands, or the images."
        )
    return torch.tensor([[bands.index(name) for name in names]])


@dataclass(frozen=True)
class Rows:
    """Features of a part in memory.

    Attributes:
        features: Shape (N, G, F), float32.
        textures: Shape (N, T), float32.
        labels: Shape (N, ...).
    """

    features: Tensor
    textures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.features[index], self.textures[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return a batch at once, which a loader asks for where it can."""
        rows = torch.as_tensor(indices)
        return self.features[rows], self.textures[rows], self.labels[rows]


def saco_transform() -> v2.Compose:
    """Return what reference system 2 varies images by; its central crop of 64 px leaves 64 px images alone."""
    return v2.Compose(
        [
            v2.RandomApply([v2.RandomAffine(degrees=0, shear=10)]),
            v2.RandomApply([v2.RandomRotation(45)]),
            v2.RandomVerticalFlip(),
            v2.RandomHorizontalFlip(),
        ]
    )


def extract(features: ProbeFeatures, images: ProbeImages, config: ProbeConfig, stage: str, place: RunPlace) -> Rows:
    """Return the features of all images of a part, computed in evaluation mode.

    Raises:
        DataError: An image is damaged.
    """
    device = choose_device(config.trainer.device)
    dtype = choose_precision(config.trainer.precision, device)
    features = features.eval().to(device)
    loader: DataLoader[Any] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=FEATURE_BATCH,
        num_workers=config.data.workers,
    )
    found = []
    for batch, labels in loader:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            groups, textures = features(batch.to(device))
        found.append((groups.float().cpu(), textures.float().cpu(), labels))
        place.progress(stage, min(len(found) * FEATURE_BATCH, len(images)), len(images))
    # Tensors of inference mode cannot be learned from: concatenated outside of it, they are ordinary ones.
    return Rows(*(torch.cat(column) for column in zip(*found, strict=True)))
