"""Features of a frozen trunk, computed once and kept on disk: what follows it then trains without running it again.

They hold for one trunk, one data set and images that are not augmented: a turned or brighter image has other features.
A pair of 512 px takes about 140 MB with a ResNet-50 and 50 MB with a ResNet-18, so this is for small sets.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from mmcd.cards import Branch
from mmcd.data.base import PairDataset, Sample
from mmcd.errors import ConfigError, DataError, ModelError, StorageError
from mmcd.models.fusion_unet import FusionUNet
from mmcd.progress import Progress, silent
from mmcd.training.tasks import normalise

Side = Literal["pre", "post"]

FOLDER = "features"
"""Folder of a run that holds them, by key."""

_RECORD = "record.json"
_SIDES: tuple[Side, ...] = ("pre", "post")
_BYTES = 2


class FeatureCache:
    """Features of both images of some samples of a data set, in half precision.

    Args:
        folder: Folder that `cache_features` has filled.

    Attributes:
        size: Height and width of the images.
    """

    def __init__(self, folder: Path) -> None:
        record = json.loads((folder / _RECORD).read_text())
        self._folder = folder
        self._levels: list[int] = record["levels"]
        self._place = {index: place for place, index in enumerate(record["indices"])}
        self.size: tuple[int, int] = tuple(record["size"])
        self._maps = {(side, level): _open(folder, side, level) for side in _SIDES for level in self._levels}

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: an averaged copy of a model reads the same files."""
        return self

    def features(
        self, indices: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return the features before and after of a batch, by level, each (B, channels, h, w), float32.

        Args:
            indices: Positions of the samples in their data set, shape (B,).
            device: Where to put them.

        Raises:
            DataError: A sample is not among those that were cached.
        """
        asked = [int(index) for index in indices]
        missing = [index for index in asked if index not in self._place]
        if missing:
            raise DataError(f"The features of sample {missing[0]} were not cached.", "Remove the folder of features.")
        places = [self._place[index] for index in asked]
        before, after = ({level: self._read(side, level, places, device) for level in self._levels} for side in _SIDES)
        return before, after

    def _read(self, side: Side, level: int, places: Sequence[int], device: torch.device | str) -> Tensor:
        values = torch.from_numpy(self._maps[side, level][places])
        return values.to(device).float().contiguous(memory_format=torch.channels_last)


def cache_features(
    model: FusionUNet,
    dataset: PairDataset,
    indices: NDArray[np.intp],
    branches: tuple[Branch, Branch],
    folder: Path,
    batch_size: int = 4,
    progress: Progress = silent,
) -> FeatureCache:
    """Return the features of some samples, computed now or by an earlier run with the same trunk and samples.

    Args:
        model: Model with a frozen trunk, on the device to compute on.
        dataset: Samples of one size, not augmented.
        indices: Which of them.
        branches: How the images before and after are normalised.
        folder: Folder of the run.
        batch_size: Samples that go through the trunk at once.
        progress: Told of the samples done; may raise to stop.

    Raises:
        ConfigError: The trunk is trained, or its statistics move.
        DataError: The samples differ in size, or there are none.
        ModelError: Features exceed half precision.
        StorageError: The disk has not enough space for them.
    """
    refuse_moving_trunk(model)
    if not len(indices):
        raise DataError("There is no sample whose features could be cached.", "Leave cache_features out.")
    size = tuple(dataset[int(indices[0])]["pre"].shape[-2:])
    key = features_key(model, [dataset.ids[index] for index in indices], branches, size)
    place = folder / FOLDER / key
    record = {"levels": model.levels, "indices": [int(index) for index in indices], "size": list(size)}
    if (place / _RECORD).is_file() and json.loads((place / _RECORD).read_text()) == record:
        return FeatureCache(place)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of another trunk or other samples, or not finished
    training = model.training
    try:
        _compute(model.eval(), dataset, indices, branches, place, batch_size, progress)
    finally:
        model.train(training)
    (place / _RECORD).write_text(json.dumps(record))  # last, because it marks them as whole
    return FeatureCache(place)


def refuse_moving_trunk(model: FusionUNet) -> None:
    """Refuse a model whose features change while it trains.

    Raises:
        ConfigError: They do.
    """
    if model.finetune or not model.frozen_statistics:
        moving = "is trained" if model.finetune else "moves its statistics"
        raise ConfigError(
            f"Features cannot be cached: the trunk {moving}.",
            "Set finetune: false and frozen_statistics: true, or leave cache_features out.",
        )


def features_key(model: FusionUNet, ids: Sequence[str], branches: tuple[Branch, Branch], size: Sequence[int]) -> str:
    """Return a hash of all that decides the features: the trunks' weights, the samples and how they are normalised."""
    parts = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "encoder" in name.split(".")[0]:
            parts.update(name.encode())
            parts.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    words = [list(ids), [branch.model_dump(mode="json") for branch in branches], list(size)]
    parts.update(json.dumps(words).encode())
    return parts.hexdigest()[:32]


def _compute(
    model: FusionUNet,
    dataset: PairDataset,
    indices: NDArray[np.intp],
    branches: tuple[Branch, Branch],
    place: Path,
    batch_size: int,
    progress: Progress,
) -> None:
    maps: dict[tuple[Side, int], NDArray[np.float16]] = {}
    done = 0
    for batch in _batches(dataset, indices, batch_size):
        for side, branch in zip(_SIDES, branches, strict=True):
            for level, values in _encoded(model, batch, side, branch).items():
                if (side, level) not in maps:
                    maps[side, level] = _created(place, side, level, (len(indices), *values.shape[1:]))
                maps[side, level][done : done + len(values)] = values
        done += len(batch["index"])
        progress("features", done, len(indices))
    for values in maps.values():
        values.flush()  # type: ignore[attr-defined]


def _batches(dataset: PairDataset, indices: NDArray[np.intp], batch_size: int) -> Iterator[Sample]:
    """Yield batches in order.

    Raises:
        DataError: Two samples differ in size.
    """
    size = None
    for first in range(0, len(indices), batch_size):
        chosen = [int(index) for index in indices[first : first + batch_size]]
        samples = [dataset[index] for index in chosen]
        for index, sample in zip(chosen, samples, strict=True):
            size = size or sample["target"].shape
            if sample["target"].shape != size:
                raise DataError(
                    f"Features can be cached of samples of one size only: {dataset.ids[index]} differs.",
                    "Resize them with data.size, or leave cache_features out.",
                )
        yield default_collate(samples)


@torch.inference_mode()
def _encoded(model: FusionUNet, batch: Sample, side: Side, branch: Branch) -> dict[int, NDArray[np.float16]]:
    """Return the features of one image of each sample of a batch, by the levels that are fused."""
    device = next(model.parameters()).device
    image = normalise(batch[side].to(device), batch["valid"].to(device), branch)
    features = model.encode(image, side)
    found = {level: features[level].float().cpu().numpy().astype(np.float16) for level in model.levels}
    if not all(np.isfinite(values).all() for values in found.values()):
        raise ModelError("The trunk's features exceed half precision.", "Leave cache_features out.")
    return found


def _created(place: Path, side: Side, level: int, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Return a new file of features as a writable array.

    Raises:
        StorageError: The disk has not enough space for it, or cannot be written.
    """
    needed = _BYTES * int(np.prod(shape, dtype=np.int64))
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
        if needed < free:
            path = _path(place, side, level)
            return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call,no-any-return]
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error.strerror}.", "Choose another workspace.") from error
    raise StorageError(
        f"The features of level {level} need {needed / 1e9:,.1f} GB in {place}, {free / 1e9:,.1f} GB are free.",
        "Free some space, take smaller tiles, or leave cache_features out.",
    )


def _open(folder: Path, side: Side, level: int) -> NDArray[np.float16]:
    return np.load(_path(folder, side, level), mmap_mode="r")  # type: ignore[no-any-return]


def _path(folder: Path, side: Side, level: int) -> Path:
    return folder / f"{side}_{level}.npy"
