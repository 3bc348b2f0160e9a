"""Patch pairs as reference system 0 sees them: 256 px contexts of an optical and a SAR image, each scaled by itself.

Nothing is cut in advance: `PatchPairs` reads tiles as they are asked for and keeps the decoded ones in memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2

from mmcd.data.bright import BrightTile, index_bright, read_layer
from mmcd.data.patch_index import PatchRules, PatchTable, context_boxes
from mmcd.errors import DataError

_EPSILON = 1e-8
"""Added to the standard deviation of a patch, as in the reference, so that a constant patch becomes 0."""

CACHE_BYTES = 2 * 1024**3
"""Decoded tiles that are kept: a tile of 1024 px takes 4 MB, so about five hundred."""

_SHOWN = 3

Images = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Optical image, shape (3, H, W), and SAR amplitude, shape (1, H, W)."""

Decoded = TypeVar("Decoded", bound=tuple[NDArray[Any], ...])


def standardise_optical(patches: Tensor) -> Tensor:
    """Return patches with mean 0 and standard deviation 1 in every band of every patch.

    Args:
        patches: Digital numbers, shape (N, C, H, W), any dtype.

    Returns:
        Shape (N, C, H, W), float32.
    """
    values = patches.float()
    mean = values.mean(dim=(2, 3), keepdim=True)
    spread = values.std(dim=(2, 3), keepdim=True, correction=0)
    return (values - mean) / (spread + _EPSILON)


def standardise_sar(patches: Tensor) -> Tensor:
    """Return SAR amplitudes as `standardise_optical` returns optical bands, after ``log(1 + x)``.

    Args:
        patches: Amplitudes, not negative, shape (N, C, H, W), any dtype.

    Returns:
        Shape (N, C, H, W), float32.
    """
    return standardise_optical(patches.float().log1p())


class PatchSample(TypedDict):
    """One patch pair, or a batch of them with a leading axis.

    Values:
        optical: Standardised context of the image before, shape (3, 256, 256), float32.
        sar: Standardised context of the image after, shape (1, 256, 256), float32.
        is_positive: True for an unchanged pair, bool.
        position: First row and column of the ROI, shape (2,), int64.
        damage_ratio: Share of damaged pixels in the ROI, float32.
        has_building: True where enough of the ROI is building, bool.
        image_id: Id of the tile; a list of them in a batch.
        index: Position in the data set, int64.
    """

    optical: Tensor
    sar: Tensor
    is_positive: Tensor
    position: Tensor
    damage_ratio: Tensor
    has_building: Tensor
    image_id: Any
    index: Tensor


class QuarterTurn(v2.Transform):  # type: ignore[misc]
    """Turns all images of a sample by the same random multiple of 90 degrees."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the number of quarter turns, one for the whole sample."""
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turn one image."""
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], dims=(-2, -1)), like=inpt)


def paired_transform() -> Callable[..., Any]:
    """Return the reference's augmentation: mirrors with probability one half and quarter turns, both images alike."""
    transform: Callable[..., Any] = v2.Compose(
        [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5), QuarterTurn()]
    )
    return transform


def select_patches(
    is_positive: NDArray[np.bool_], subset_fraction: float = 1.0, target_neg_ratio: float | None = None, seed: int = 42
) -> NDArray[np.intp]:
    """Draw a part of the patches without replacement, with a wanted share of negative (damaged) ones.

    Where a class has fewer patches than its share asks for, the other one takes its place.

    Args:
        is_positive: True for unchanged pairs, shape (N,).
        subset_fraction: Share of all patches that is drawn, in (0, 1].
        target_neg_ratio: Share of negative patches among them; None draws regardless of class.
        seed: Seed of the draw.

    Returns:
        Indices in random order.

    Raises:
        DataError: The fraction leaves no patch.
    """
    total = int(len(is_positive) * subset_fraction)
    if not total:
        raise DataError(
            f"A fraction of {subset_fraction} of {len(is_positive):,} patches is none.",
            "Choose a larger subset_fraction.",
        )
    random = np.random.default_rng(seed)
    if target_neg_ratio is None:
        return random.permutation(len(is_positive))[:total]
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    wanted = min(int(total * target_neg_ratio), len(negatives))
    kept = min(total - wanted, len(positives))
    wanted = min(total - kept, len(negatives))
    drawn = [random.permutation(negatives)[:wanted], random.permutation(positives)[:kept]]
    return random.permutation(np.concatenate(drawn))


class TileCache(Generic[Decoded]):
    """Decoded tiles, the least recently used of which are dropped so that all fit into a budget.

    Every loader process keeps a cache of its own and an equal part of the budget.

    Args:
        budget: Bytes in all processes together.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 0
        self._tiles: OrderedDict[Hashable, Decoded] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"size": 0, "_tiles": OrderedDict()}  # a new process begins empty

    def __len__(self) -> int:
        return len(self._tiles)

    def get(self, key: Hashable, read: Callable[[], Decoded]) -> Decoded:
        """Return a tile, read when it is not there."""
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        images = read()
        size = _bytes_of(images)
        if size <= self._room():
            self._tiles[key] = images
            self.size += size
            while self.size > self._room():
                self.size -= _bytes_of(self._tiles.popitem(last=False)[1])
        return images

    def _room(self) -> int:
        worker = get_worker_info()
        return self.budget if worker is None else self.budget // worker.num_workers


def _bytes_of(images: tuple[NDArray[Any], ...]) -> int:
    return sum(image.nbytes for image in images)


class PatchPairs(Dataset[PatchSample]):
    """Patch pairs of BRIGHT tiles, cut and standardised when they are asked for.

    An index counts the patches of ``table``: to work on a part of them, hand over that part (`select_patches`). The
    augmentation of a patch depends on seed, epoch and index only, so a resumed run sees what an uninterrupted one
    would have seen.

    Args:
        root: Folder of the data set, in either layout.
        table: The patches.
        rules: Sides of ROI and context that the table was made by.
        transform: Applied to both images as `tv_tensors.Image`, before they are standardised; None leaves them.
        cache_bytes: Budget of the decoded tiles in all loader processes together; a budget below
            one tile keeps none.
        seed: Seed of the augmentation.

    Raises:
        DataError: A tile of the table is not in the folder.
    """

    def __init__(
        self,
        root: Path,
        table: PatchTable,
        rules: PatchRules | None = None,
        *,
        transform: Callable[..., Any] | None = None,
        cache_bytes: int = CACHE_BYTES,
        seed: int = 0,
    ) -> None:
        self.table = table
        self.seed = seed
        self._boxes = context_boxes(table.position, rules or PatchRules())
        self._tiles = tiles_of(root, table)
        self._transform = transform
        self._cache: TileCache[Images] = TileCache(cache_bytes)
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # running loader processes see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn next, in running loader processes too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> PatchSample:
        """Read one patch pair.

        Raises:
            DataError: A file is damaged or not as published, or the patch leaves its tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        images = [torch.from_numpy(image) for image in self._cut(index)]
        if self._transform is not None:
            images = self._augmented(self._transform, images, index)
        table = self.table
        return PatchSample(
            optical=standardise_optical(images[0][None])[0],
            sar=standardise_sar(images[1][None])[0],
            is_positive=torch.tensor(bool(table.is_positive[index])),
            position=torch.from_numpy(table.position[index].astype(np.int64)),
            damage_ratio=torch.tensor(float(table.damage_ratio[index])),
            has_building=torch.tensor(bool(table.has_building[index])),
            image_id=table.image_ids[table.image[index]],
            index=torch.tensor(index),
        )

    def _cut(self, index: int) -> Images:
        """Return the context of a patch in both images."""
        number = int(self.table.image[index])
        top, left, bottom, right = (int(edge) for edge in self._boxes[index])
        images = self._cache.get(number, lambda: read_images(self._tiles[number]))
        height, width = images[0].shape[1:]
        if top < 0 or left < 0 or bottom > height or right > width:
            raise DataError(
                f"A patch of tile {self.table.image_ids[number]} leaves it: rows {top} to {bottom}, columns {left} to "
                f"{right} of {width} × {height} px.",
                "The metadata belong to other tiles: make them again with mmcd data index.",
            )
        optical, sar = (image[:, top:bottom, left:right].copy() for image in images)
        return optical, sar

    def _augmented(self, transform: Callable[..., Any], images: Sequence[Tensor], index: int) -> list[Tensor]:
        seed = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            turned = transform(*(tv_tensors.Image(image) for image in images))
        return [image.as_subclass(Tensor).contiguous() for image in turned]


def tiles_of(root: Path, table: PatchTable) -> list[BrightTile]:
    """Return the tile of every id of a table; of two with one id, the one in the contest's train folder.

    Raises:
        DataError: A tile that holds patches is not in the folder.
    """
    found: dict[str, BrightTile] = {}
    for tile in index_bright(root).tiles:
        if tile.part == "train" or tile.id not in found:
            found[tile.id] = tile
    used = [table.image_ids[number] for number in np.unique(table.image)]
    missing = [image_id for image_id in used if image_id not in found]
    if missing:
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{root} lacks {len(missing):,} of the {len(used):,} tiles of the patch metadata: "
            f"{', '.join(missing[:_SHOWN])}{more}.",
            "Give the folder that was indexed, or index this one with mmcd data index.",
        )
    spare = found[used[0]]  # ids without a patch are never read
    return [found.get(image_id, spare) for image_id in table.image_ids]


def read_images(tile: BrightTile) -> Images:
    """Read both images of a tile; a SAR file with several bands gives its first.

    Raises:
        DataError: A file is missing, damaged or not as published, or they differ in size.
    """
    optical, sar = read_layer(tile, "pre")[0], read_layer(tile, "post")[0]
    if optical.shape[1:] != sar.shape[1:]:
        raise DataError(
            f"The images of tile {tile.id} differ in size: {optical.shape[1:]} and {sar.shape[1:]}.",
            "Restore the published files, or put the id into the blacklist and index again.",
        )
    return optical, sar
