"""The two images of a scene as the model wants them: one grid, the card's bands and units, one stretch a scene."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Branch, Card
from mmcd.geo.closing import Closing
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import RasterSource
from mmcd.geo.sensors import PairStretch, SceneStretch, select_bands

_STRETCH_PIXELS = 1_000_000


@dataclass(frozen=True)
class PairBlock:
    """Inputs of the model for one window.

    Attributes:
        pre: Stretched values in [0, 1], shape (bands, y, x), float32.
        post: The same of the image after.
        pre_valid: Pixels of ``pre`` that were measured, shape (y, x).
        post_valid: The same of ``post``.
    """

    pre: NDArray[np.float32]
    post: NDArray[np.float32]
    pre_valid: NDArray[np.bool_]
    post_valid: NDArray[np.bool_]


class _Image:
    """One image read in the scene's grid, in the units of its branch."""

    def __init__(self, path: Path, branch: Branch, grid: Grid, substitute: bool, stretch: SceneStretch | None) -> None:
        with RasterSource(path) as source:
            chosen = select_bands(source, branch.bands, substitute)
        self.notes = chosen.notes
        self._source = RasterSource(path, chosen.indexes)
        try:
            self._view = self._source.aligned(grid)
            self.stretch = stretch or SceneStretch.measure(
                self._source, branch.unit, branch.percentiles, branch.level, _STRETCH_PIXELS
            )
        except BaseException:
            self._source.close()
            raise

    def read(self, window: Window, shift: tuple[int, int] = (0, 0)) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return stretched values and their mask; beyond the scene both continue as its mirror image.

        What a shift asks for beyond the image is not valid.
        """
        inside = window.intersection(self._view.grid.window)
        raster = self._view.read(inside.shifted(*shift))
        valid = raster.valid & self.stretch.measured(raster.data)
        return _mirrored(self.stretch.apply(raster.data), inside, window), _mirrored(valid[None], inside, window)[0]

    def close(self) -> None:
        self._source.close()


class PairReader(Closing):
    """Opens both images of a scene for a model. Use it as a context manager.

    The stretch is measured once over the whole scene, never over a window, so a region and the whole see the same
    numbers.

    Args:
        pre: Image before.
        post: Image after.
        card: Card of the model.
        grid: Grid of the whole scene.
        substitute: Let other bands stand in for missing ones, see `mmcd.geo.sensors.select_bands`.
        stretch: Stretches of the whole scene where these files are only a part of it; measured when left out.

    Attributes:
        shift: Rows and columns by which ``post`` is read further down and to the right, to move back an image that is
            displaced; (0, 0) unless it is set. Places that the displaced image does not show are not valid.

    Raises:
        InputError: A file cannot be read or lacks the bands that the card asks for.
    """

    def __init__(
        self,
        pre: Path,
        post: Path,
        card: Card,
        grid: Grid,
        substitute: bool = False,
        stretch: PairStretch | None = None,
    ) -> None:
        self.grid = grid
        self.shift = (0, 0)
        before, after = stretch or (None, None)
        self._pre = _Image(pre, card.pre, grid, substitute, before)
        try:
            self._post = _Image(post, card.post, grid, substitute, after)
        except BaseException:
            self._pre.close()
            raise

    def close(self) -> None:
        """Close both files."""
        self._pre.close()
        self._post.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed about bands and units, for the user."""
        return (*self._pre.notes, *self._post.notes)

    @property
    def stretches(self) -> dict[str, Any]:
        """The whole-scene stretches, for the manifest."""
        return {"pre": self._pre.stretch.to_dict(), "post": self._post.stretch.to_dict()}

    def read(self, window: Window) -> PairBlock:
        """Return both images in a window of the scene's grid, which must touch the scene.

        Raises:
            InputError: A file is damaged there.
        """
        pre, pre_valid = self._pre.read(window)
        post, post_valid = self._post.read(window, self.shift)
        return PairBlock(pre, post, pre_valid, post_valid)


@dataclass(frozen=True)
class ArrayPair:
    """Both images of a small scene that is in memory, read as `PairReader` reads files.

    Attributes:
        pre: Stretched values in [0, 1] of the whole scene, shape (bands, H, W), float32.
        post: The same of the image after.
        grid: Grid of the scene.
    """

    pre: NDArray[np.float32]
    post: NDArray[np.float32]
    grid: Grid

    def read(self, window: Window) -> PairBlock:
        """Return both images in a window that touches the scene; every pixel counts as measured."""
        inside = window.intersection(self.grid.window)
        pre, post = (_mirrored(image[:, *inside.slices], inside, window) for image in (self.pre, self.post))
        valid = np.ones((window.height, window.width), np.bool_)
        return PairBlock(pre, post, valid, valid)


def _mirrored(values: NDArray[Any], inside: Window, window: Window) -> NDArray[Any]:
    """Continue values, shape (band, y, x), of ``inside`` over the whole of ``window`` by reflection.

    A network trained on tiles has seen texture up to their edges; constant margins would be a pattern of their own.
    """
    top, left = inside.row - window.row, inside.col - window.col
    bottom = window.height - top - inside.height
    right = window.width - left - inside.width
    return np.pad(values, ((0, 0), (top, bottom), (left, right)), mode="symmetric")
