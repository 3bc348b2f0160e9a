"""Find by how much the image after is displaced against the image before, in the model's own embeddings.

What the two branches of a model agree on is the same ground. So the image after is moved until the vectors of its
regions are most like those of the image before. Every offset is embedded anew: vectors of regions that lie off the
network's grid, or elsewhere in their window, differ by more than an offset does. The likeness falls off smoothly and
over tens of pixels, so one axis after the other is enough, in coarse steps that end in a parabola. Unlike
`mmcd.geo.registration`, which compares edges and needs no model, this looks for what the scores will be made of: a
radar image that leans by its layover counts as in place where the model learned it so.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card
from mmcd.errors import ConfigError
from mmcd.geo.grid import Window
from mmcd.inference.backends import Side, TorchBackend
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor, normalise
from mmcd.inference.survey import sample_windows
from mmcd.progress import Progress, silent

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Offset = tuple[int, int]
"""Rows and columns by which the content of the image after lies below and to the right of its place."""

REACH = 16
"""Largest displacement in pixels, along rows or columns, that is looked for."""

_STRIDE = 8  # Pixels between two regions.
_COARSE, _FINE = 8, 4  # Steps in pixels; finer ones would follow the noise, so a parabola takes over.
_BORDER = REACH + _FINE  # The search ends here: a best offset this long is only the beginning of a longer one.
_ROOM = _BORDER + _FINE  # Read around a window: a step beyond the border.
_MARGIN = 32  # Pixels of a window that are left out on each side: their regions see most of the window's edge.
_SIDE, _WINDOWS = 256, 9
_SMALLEST_SIDE = 128
_CHANGED = 0.25  # Share of the regions, the least alike, that is left out: ground that may have changed.
_SQUARE = 8  # Regions along the side of a square of ground that has one vote: 64 px.
_FEWEST_SQUARES = 8
_CLEAR_LENGTH = 5.0  # Pixels. In-place scenes are found up to 4 px off; models are trained to bear 2 px.
_CLEAR_GAIN = 0.003  # In-place scenes gain up to 0.001.
_CLEAR_SHARE = 0.55  # A square alone is noisy: of those of a scene 8 px off, two in three agree.
_CHANCE = 2.0  # Standard deviations of a fair coin that few squares must lie above a half: chance agrees easily.


@dataclass(frozen=True)
class Alignment:
    """A measured displacement of the image after against the image before.

    Attributes:
        dx_px: Pixels to the right by which the content of the image after lies off its place.
        dy_px: Pixels downwards.
        dx_m: The same in metres to the east; None where metres are not known.
        dy_m: The same in metres to the north.
        gain: Mean cosine of the regions with the image after moved back, minus that without; see `likeness`.
        confidence: Share of squares of 64 px that are more alike with the image after moved back, in [0, 1]; 0.5 is
            what chance gives.
        squares: Number of those squares.
        applied: Whether the image after is moved back, see `find_alignment`.
        reason: Why, or why not; a sentence.
    """

    dx_px: int
    dy_px: int
    dx_m: float | None
    dy_m: float | None
    gain: float
    confidence: float
    squares: int
    applied: bool
    reason: str

    @property
    def shift(self) -> Offset:
        """Rows and columns to read the image after further down and to the right; (0, 0) when not applied."""
        return (self.dy_px, self.dx_px) if self.applied else (0, 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it: nothing when the image after lies in its place."""
        found = self.squares > 0 and math.hypot(self.dx_px, self.dy_px) < _CLEAR_LENGTH
        return () if found else (self.reason,)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)


def find_alignment(predictor: Predictor, reader: PairReader, progress: Progress = silent) -> Alignment:
    """Measure the displacement of a scene on at most nine windows of it, always the same ones.

    It counts as clear, and is applied, when it is at least 5 px long, shorter than 20 px along rows and columns, raises
    the mean cosine by at least 0.003 and makes at least 55 % of the squares of 64 px more alike. These limits were set
    on validation scenes of `damage-vhr-sim`, see `benchmarks/robustness.py`.

    Args:
        predictor: A predictor in torch whose model has embeddings.
        reader: The scene, read without a shift.
        progress: Told of the offsets tried; may raise to stop.

    Raises:
        ConfigError: The predictor runs an exported model or a fusion UNet, which have no embeddings.
        InputError: An image is damaged.
    """
    if not isinstance(predictor.backend, TorchBackend):
        raise ConfigError("An exported model has no embeddings to align with.", "Use --backend torch.")
    if not predictor.backend.has_embeddings:
        raise ConfigError(f"{predictor.card.name} has no embeddings to align with.", "Leave --align out.")
    windows = sample_windows(reader.grid.shape, _SIDE, _WINDOWS)
    if windows[0].height < _SMALLEST_SIDE:
        return _nothing(f"below {_SMALLEST_SIDE} px a scene is too small for it")
    search = _Search(predictor.backend, predictor.card, reader, windows)
    best = search.run(progress)
    moved, unmoved = search.at(best), search.at((0, 0))
    squares = _squares(moved - unmoved)
    if len(squares) < _FEWEST_SQUARES:
        return _nothing("too little of the scene was measured in both images")
    return _judged(best, likeness(moved) - likeness(unmoved), squares, reader.grid.gsd)


def _nothing(reason: str) -> Alignment:
    return Alignment(0, 0, None, None, 0.0, 0.0, 0, False, f"No displacement was looked for: {reason}.")


def _judged(best: Offset, gain: float, squares: Array, gsd: float | None) -> Alignment:
    """Return the alignment of the best offset by the criterion of `find_alignment`."""
    dy, dx = best
    length, share = math.hypot(dx, dy), float((squares > 0).mean())
    found = f"{length:.0f} px" + ("" if gsd is None else f" ({length * gsd:,.1f} m)")
    evidence = f"mean cosine {gain:+.3f}, {share:.0%} of {len(squares)} squares agree"
    applied = False
    if max(abs(dy), abs(dx)) >= _BORDER:
        reason = f"The image after may be displaced by more than {REACH} px; register it first ({evidence})."
    elif length < _CLEAR_LENGTH:
        reason = f"The image after lies within {_CLEAR_LENGTH:.0f} px of its place and was not moved."
    elif gain < _CLEAR_GAIN or share < max(_CLEAR_SHARE, 0.5 + _CHANCE * 0.5 / math.sqrt(len(squares))):
        reason = f"No clear displacement was found, the image after was not moved (best: {found}, {evidence})."
    else:
        applied = True
        reason = f"The image after is displaced by {found} and was moved back before scoring ({evidence})."
    east, north = (None, None) if gsd is None else (round(dx * gsd, 3), round(-dy * gsd, 3))
    return Alignment(dx, dy, east, north, round(gain, 4), round(share, 3), len(squares), applied, reason)


class _Search:
    """The windows of a scene, the image before embedded once, the image after at every offset that is asked for."""

    def __init__(self, backend: TorchBackend, card: Card, reader: PairReader, windows: Sequence[Window]) -> None:
        self._backend, self._card = backend, card
        blocks = [reader.read(window.padded(_ROOM)) for window in windows]
        self._side = windows[0].height
        self._post = [(block.post, block.post_valid) for block in blocks]
        self._pre = [self._embed(block.pre, block.pre_valid, "pre", (0, 0)) for block in blocks]
        self._cosine: dict[Offset, Array] = {}

    def run(self, progress: Progress) -> Offset:
        """Return the offset at which the regions are most alike, to a pixel."""
        best = (0, 0)
        for done, (axis, steps) in enumerate(itertools.product((0, 1), (_coarse(), _fine()))):
            progress("align", done, 6)
            tried = [_moved(best, axis, step) for step in steps]
            best = max(tried, key=lambda offset: likeness(self.at(offset)))
        exact = list(best)
        for axis in (0, 1):
            progress("align", 4 + axis, 6)
            low, middle, high = (likeness(self.at(_moved(best, axis, step))) for step in _fine())
            exact[axis] += round(_FINE * _vertex(low, middle, high))
        progress("align", 6, 6)
        return exact[0], exact[1]

    def at(self, offset: Offset) -> Array:
        """Return the cosine of each pair of regions at an offset, NaN where not measured, shape (windows, h, w)."""
        if offset not in self._cosine:
            after = (self._embed(*image, "post", offset) for image in self._post)
            pairs = zip(self._pre, after, strict=True)
            self._cosine[offset] = np.stack([_cosine(*pre, *post) for pre, post in pairs])
        return self._cosine[offset]

    def _embed(self, image: Array, valid: Mask, side: Side, offset: Offset) -> tuple[Array, Mask]:
        """Return the vectors of a window's inner regions at an offset, (D, h, w), and which were measured, (h, w)."""
        rows, cols = (slice(_ROOM + moved, _ROOM + moved + self._side) for moved in offset)
        measured = valid[rows, cols]
        branch = self._card.pre if side == "pre" else self._card.post
        vectors = self._backend.embed(normalise(image[:, rows, cols], measured, branch), side)
        inner = slice(_MARGIN // _STRIDE, (self._side - _MARGIN) // _STRIDE)
        return vectors[:, inner, inner], _whole_regions(measured)[inner, inner]


def likeness(cosine: Array) -> float:
    """Return the mean of the cosines but for the lowest quarter, which may be ground that changed.

    Args:
        cosine: Cosine of pairs of regions in [-1, 1], NaN where not measured, any shape.
    """
    known = np.sort(cosine[np.isfinite(cosine)])
    return float(known[int(_CHANGED * known.size) :].mean()) if known.size else -1.0


def _coarse() -> tuple[int, ...]:
    return tuple(range(-REACH, REACH + 1, _COARSE))


def _fine() -> tuple[int, int, int]:
    return -_FINE, 0, _FINE


def _moved(offset: Offset, axis: int, pixels: int) -> Offset:
    return (offset[0] + pixels, offset[1]) if axis == 0 else (offset[0], offset[1] + pixels)


def _vertex(low: float, middle: float, high: float) -> float:
    """Return where the parabola through three equally spaced values is highest, in spacings from the middle."""
    bend = low - 2 * middle + high
    return float(np.clip(0.5 * (low - high) / bend, -1, 1)) if bend < 0 else 0.0


def _whole_regions(measured: Mask) -> Mask:
    """Return the regions of which every pixel was measured, shape (h, w); for the last ones only what is there."""
    cells = measured.reshape(measured.shape[0] // _STRIDE, _STRIDE, -1, _STRIDE).all(axis=(1, 3))
    beyond = np.pad(cells, ((0, 1), (0, 1)), mode="edge")
    return np.asarray(cells & beyond[1:, :-1] & beyond[:-1, 1:] & beyond[1:, 1:])


def _cosine(pre: Array, pre_whole: Mask, post: Array, post_whole: Mask) -> Array:
    """Return the cosine of each pair of regions, NaN where one was not measured, shape (h, w)."""
    return np.where(pre_whole & post_whole, np.einsum("dyx,dyx->yx", pre, post), np.float32(np.nan))


def _squares(gain: Array) -> Array:
    """Return the mean of every square of ground of which half was measured, from gains of shape (windows, h, w)."""
    side = gain.shape[1] // _SQUARE
    cut = gain[:, : side * _SQUARE, : side * _SQUARE].reshape(len(gain), side, _SQUARE, side, _SQUARE)
    squares = cut.transpose(0, 1, 3, 2, 4).reshape(-1, _SQUARE**2)
    measured = squares[np.isfinite(squares).mean(axis=1) >= 0.5]
    return np.asarray(np.nanmean(measured, axis=1), dtype=np.float32)
