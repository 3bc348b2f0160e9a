"""The change map of reference system 0: one distance for every place of a sliding window, spread over its ROI.

A place is an ROI with its context. Places are scored in squares of the lattice of places, each a batch of its own: a
region is computed from the same batches as the whole scene, and a killed run goes on from its last square. The
distances of all places, a 64th of the pixels, are kept; the map is made of them window by window.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmcd.data.patch_index import PatchRules
from mmcd.errors import InputError, ModelError
from mmcd.geo.closing import Closing
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import Raster, RasterSource
from mmcd.inference.backends import Arithmetic
from mmcd.inference.engine import Journal
from mmcd.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from mmcd.models.devices import Device, Precision
    from mmcd.models.siamese import ContextSiamese

Weighting = Literal["classic", "dome"]

Distances = NDArray[np.float32]
"""Distance of every place in [0, 2], NaN where it was not scored, shape (rows, columns) of places."""

_NO_WEIGHT = 1e-12  # A dome is 0 at its corners but for rounding, which must not decide what is assessed.


@dataclass(frozen=True)
class Places:
    """All positions of a sliding window in a scene.

    Attributes:
        size: Height and width of the scene in pixels.
        rules: Sides of ROI and context, and the stride.
    """

    size: tuple[int, int]
    rules: PatchRules

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of places."""
        return len(self.rules.candidates(self.size[0])), len(self.rules.candidates(self.size[1]))

    def touching(self, window: Window) -> Window:
        """Return the places whose ROI shares a pixel with a window of the scene."""
        first = [self._first(start) for start in (window.row, window.col)]
        ends = (window.row + window.height, window.col + window.width)
        after = [
            min(count, max(0, math.ceil((end - self.rules.pad) / self.rules.patch_stride)))
            for end, count in zip(ends, self.shape, strict=True)
        ]
        return Window(first[0], first[1], max(0, after[0] - first[0]), max(0, after[1] - first[1]))

    def _first(self, pixel: int) -> int:
        """Return the first place along an axis whose ROI ends behind a pixel."""
        rules = self.rules
        return max(0, (pixel - rules.pad - rules.roi_patch_size) // rules.patch_stride + 1)

    def rois(self, places: Window) -> Window:
        """Return the pixels that the ROIs of some places cover."""
        rules = self.rules
        side = [(count - 1) * rules.patch_stride + rules.roi_patch_size for count in places.shape]
        return Window(
            rules.pad + places.row * rules.patch_stride, rules.pad + places.col * rules.patch_stride, side[0], side[1]
        )

    def contexts(self, places: Window) -> Window:
        """Return the pixels that the contexts of some places cover."""
        return self.rois(places).padded(self.rules.pad)


def roi_weights(weighting: Weighting, power: float, side: int) -> NDArray[np.float64]:
    """Return the weight of a place's distance in each pixel of its ROI, shape (side, side), in [0, 1].

    ``classic`` is 1 everywhere. ``dome`` is ``1 - (r / sqrt 2) ** power`` with the radius r on [-1, 1]²: 1 in the
    middle, 0 in the corners.
    """
    if weighting == "classic":
        return np.ones((side, side))
    axis = np.linspace(-1, 1, side)
    radius = np.hypot(axis[:, None], axis[None, :])
    weights = 1 - (radius / math.sqrt(2)) ** power
    return np.where(weights > _NO_WEIGHT, weights, 0.0)


def spread(
    distances: NDArray[np.floating], places: Places, window: Window, weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the map in a window: for every pixel the weighted mean over the places whose ROI holds it.

    Args:
        distances: Value of each place, NaN where there is none, shape (rows, columns) of places.
        places: The places.
        window: Pixels of the scene that are asked for.
        weights: Weight of a place in each pixel of its ROI, see `roi_weights`.

    Returns:
        Shape (H, W) of the window, NaN where no place has a weight.
    """
    answer = np.full(window.shape, np.nan, np.float32)
    near = places.touching(window)
    if near.empty:
        return answer
    stride, canvas = places.rules.patch_stride, places.rois(near)
    values = distances[near.slices].astype(np.float64)
    known = np.isfinite(values)
    values[~known] = 0
    total, weight = np.zeros(canvas.shape), np.zeros(canvas.shape)
    for (row, col), share in np.ndenumerate(weights):
        cells = (_every(row, stride, near.height), _every(col, stride, near.width))
        total[cells] += share * values
        weight[cells] += share * known
    mean = np.divide(total, weight, out=np.full(canvas.shape, np.nan), where=weight > 0)
    shared = canvas.intersection(window)
    inside = shared.shifted(-canvas.row, -canvas.col).slices
    answer[shared.shifted(-window.row, -window.col).slices] = mean[inside]
    return answer


def _every(first: int, step: int, count: int) -> slice:
    return slice(first, first + (count - 1) * step + 1, step)


class PairImages(Closing):
    """Both images of a scene in one grid and in the units of their files. Use it as a context manager.

    Args:
        pre: Optical image before.
        post: SAR amplitude after.
        grid: Grid of the scene.
        pre_bands: Bands of ``pre`` that are read, from 1.
        post_bands: The same of ``post``.

    Raises:
        InputError: A file cannot be read or lacks the bands.
    """

    def __init__(
        self, pre: Path, post: Path, grid: Grid, pre_bands: tuple[int, ...], post_bands: tuple[int, ...]
    ) -> None:
        self.grid = grid
        self._sources: list[RasterSource] = []
        try:
            for path, bands in ((pre, pre_bands), (post, post_bands)):
                self._sources.append(RasterSource(path, bands))
            self._pre, self._post = (source.aligned(grid) for source in self._sources)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both files."""
        for source in self._sources:
            source.close()

    def read(self, window: Window) -> tuple[Raster, Raster]:
        """Return both images in a window of the scene's grid.

        Raises:
            InputError: A file is damaged there, or the SAR image holds negative values.
        """
        pre, post = self._pre.read(window), self._post.read(window)
        if post.data.min(initial=0) < 0:
            raise InputError(
                f"{self._sources[1].path} holds negative values; the patch method takes SAR amplitudes.",
                "Convert decibels to amplitudes, or use --method dense.",
            )
        return pre, post

    def measured(self, window: Window) -> NDArray[np.bool_]:
        """Return where both images hold data, shape (H, W) of the window."""
        pre, post = self.read(window)
        return pre.valid & post.valid


class Compared(NamedTuple):
    """What the network says of a batch of patch pairs.

    Attributes:
        distance: ``1 - cosine`` of each, shape (N,), in [0, 2].
        pre: Unit vectors of the contexts before, shape (N, D).
        post: The same of the contexts after.
        pre_features: Vectors of the encoder that they are projected from, shape (N, 512).
        post_features: The same of the contexts after.
    """

    distance: NDArray[np.float32]
    pre: NDArray[np.float32]
    post: NDArray[np.float32]
    pre_features: NDArray[np.float32]
    post_features: NDArray[np.float32]


class PatchScorer:
    """The network of reference system 0 on a device: contexts in, distances out.

    Args:
        network: The network in its patch form.
        device: Device to run on.
        precision: Arithmetic to run in; ``auto`` is fp32, the reference's.

    Raises:
        ConfigError: The device is not there.
    """

    def __init__(self, network: "ContextSiamese", device: "Device" = "auto", precision: "Precision" = "auto") -> None:
        import torch

        from mmcd.models.devices import choose_device, choose_precision

        self._device = choose_device(device)
        self._dtype = choose_precision("fp32" if precision == "auto" else precision, self._device)
        self._network = network.eval().to(self._device).to(memory_format=torch.channels_last)

    @property
    def arithmetic(self) -> Arithmetic:
        """Device, dtype and thread count of torch now."""
        import torch

        dtype = str(self._dtype).removeprefix("torch.")
        return Arithmetic(str(self._device), dtype, torch.get_num_threads(), f"torch {torch.__version__}")

    def distances(self, pre: "torch.Tensor", post: "torch.Tensor") -> NDArray[np.float32]:
        """Return ``1 - cosine`` of a batch of contexts, each standardised by itself, shape (N,), in [0, 2].

        Args:
            pre: Optical digital numbers, shape (N, C1, 256, 256).
            post: SAR amplitudes, shape (N, C2, 256, 256).

        Raises:
            ModelError: The network answers with values that are no numbers.
        """
        from mmcd.data.patches import standardise_optical, standardise_sar

        return self.compare(standardise_optical(pre.to(self._device)), standardise_sar(post.to(self._device))).distance

    def compare(self, pre: "torch.Tensor", post: "torch.Tensor") -> Compared:
        """Return distances and embeddings of a batch of standardised contexts.

        Args:
            pre: Standardised contexts before, shape (N, C1, 256, 256).
            post: Standardised contexts after, shape (N, C2, 256, 256).

        Raises:
            ModelError: The network answers with values that are no numbers.
        """
        import torch

        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            output = self._network(pre.to(self._device), post.to(self._device))
        distance, *vectors = (part.float().cpu().numpy() for part in output)
        if not np.isfinite(distance).all():
            raise ModelError("The network answers with values that are no numbers.", "Its training diverged.")
        return Compared(distance[:, 0], *vectors)


def score_places(
    images: PairImages,
    places: Places,
    within: Window,
    scorer: PatchScorer,
    distances: Distances,
    journal: Journal,
    batch_size: int = 64,
    progress: Progress = silent,
) -> None:
    """Score the places whose ROI touches a window, those that the journal does not hold yet.

    A place is left out where less of its context is measured than ``min_valid_pixels``, in either image.

    Args:
        images: The scene.
        places: All places of it.
        within: Pixels that the map is asked for.
        scorer: The network.
        distances: Takes the distances; NaN where nothing was scored yet. A map of a file keeps them.
        journal: Knows the finished squares of places, and is told of each.
        batch_size: Places at most that go through the network at once.
        progress: Told of the places done; may raise to stop.

    Raises:
        InputError: A file is damaged.
        ModelError: The network answers with values that are no numbers.
        Cancelled: The progress callback asked to stop; finished squares are kept.
    """
    squares = list(blocks(places.shape, math.isqrt(batch_size), within=places.touching(within)))
    total = sum(square.height * square.width for square in squares)
    done = 0
    progress("score patches", done, total)
    for square in squares:
        if not journal.holds(square):
            distances[square.slices] = _scored(images, places, square, scorer)
            if isinstance(distances, np.memmap):
                distances.flush()
            journal.add([square])
        done += square.height * square.width
        progress("score patches", done, total)


def _scored(images: PairImages, places: Places, square: Window, scorer: PatchScorer) -> Distances:
    """Return the distances of a square of places, NaN where too little is measured."""
    import torch

    rules = places.rules
    pre, post = images.read(places.contexts(square))
    valid = _contexts(torch.from_numpy((pre.valid & post.valid)[None].astype(np.float32)), rules)
    enough = valid.mean(dim=(2, 3, 4)) >= rules.min_valid_pixels
    answer = np.full(square.shape, np.nan, np.float32)
    if enough.any():
        before, after = (_contexts(torch.from_numpy(image.data), rules)[enough] for image in (pre, post))
        answer[enough.numpy()] = scorer.distances(before, after)
    return answer


def _contexts(image: "torch.Tensor", rules: PatchRules) -> "torch.Tensor":
    """Return a view of every context of an image (C, H, W), shape (rows, columns, C, context, context)."""
    side, stride = rules.context_patch_size, rules.patch_stride
    return image.unfold(1, side, stride).unfold(2, side, stride).permute(1, 2, 0, 3, 4)
