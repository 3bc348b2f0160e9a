"""Simulated scenes as training samples: generated from seeds when the data set is opened, nothing is stored.

A scene is a group. Families (street layouts, palettes, events) that validation and test use and training does not
show how far what was learned reaches beyond the scenes it was learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmcd.config import Config
from mmcd.data.base import Sample, to_sample
from mmcd.progress import Progress, silent
from mmcd.simulate import SceneSpec, simulate_scene
from mmcd.simulate.events import DAMAGED, EVENTS, Event
from mmcd.simulate.layouts import LAYOUTS, Layout
from mmcd.simulate.palettes import PALETTES, PaletteName

BANDS_PRE = ("B4", "B3", "B2")
BANDS_POST = ("VV",)

_POSITION_STREAM = 3
"""Keeps the choice of tiles independent of the scene, whose own randomness comes from streams 1 and 2 of its seed."""


class SceneSet(Config):
    """Scenes of some families, all their combinations in turn.

    Attributes:
        scenes: Number of scenes.
        seed: Seed of the first scene; the next ones count up.
        layouts: Street layouts.
        palettes: Climates.
        events: Kinds of disaster.
    """

    scenes: int = Field(ge=1)
    seed: int = Field(ge=0)
    layouts: tuple[Layout, ...] = Field(default=LAYOUTS, min_length=1)
    palettes: tuple[PaletteName, ...] = Field(default=PALETTES, min_length=1)
    events: tuple[Event, ...] = Field(default=EVENTS, min_length=1)

    @property
    def seeds(self) -> range:
        """Seeds of its scenes."""
        return range(self.seed, self.seed + self.scenes)

    def specs(self, size: int, gsd: float) -> list[SceneSpec]:
        """Return the specification of every scene.

        Args:
            size: Height and width in pixels.
            gsd: Metres a pixel.
        """
        families = list(product(self.palettes, self.layouts, self.events))
        return [
            SceneSpec(size=size, gsd=gsd, seed=seed, event=event, layout=layout, palette=palette)
            for number, seed in enumerate(self.seeds)
            for palette, layout, event in [families[number % len(families)]]
        ]


class SimulatedConfig(Config):
    """Which scenes are simulated and how tiles are cut from them.

    Training tiles are drawn where the damage is, because only a few pixels in a hundred are damaged. Validation
    tiles cover their scenes without a gap, so that damage has its natural share among them.

    Attributes:
        size: Height and width of a scene in pixels, a multiple of ``tile``.
        gsd: Metres a pixel.
        tile: Side of a validation tile in pixels.
        training_tile: Side of a training tile in pixels, at most ``size``.
        tiles: Training tiles of a scene.
        focus: Share of the training tiles that are centred on a damaged place; the others lie anywhere.
        training: Scenes to learn from.
        validation: Scenes that choose checkpoint, calibration and threshold.
        test: Scenes that choose nothing and are not opened in training; kept here so that the card names them.
    """

    size: int = Field(default=512, ge=128)
    gsd: float = Field(default=0.5, gt=0)
    tile: int = Field(default=256, ge=64)
    training_tile: int = Field(default=320, ge=64)
    tiles: int = Field(default=2, ge=1)
    focus: float = Field(default=0.75, ge=0, le=1)
    training: SceneSet
    validation: SceneSet
    test: SceneSet

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size % self.tile or self.training_tile > self.size:
            raise ValueError(
                f"tiles of {self.tile} and {self.training_tile} px cannot be cut from scenes of {self.size} px"
            )
        parts = (self.training.seeds, self.validation.seeds, self.test.seeds)
        if len(set().union(*parts)) < sum(len(part) for part in parts):
            raise ValueError("training, validation and test share seeds")
        return self


@dataclass(frozen=True)
class _Pixels:
    """Pixels of one scene: pre (3, H, W), post (1, H, W) and label (H, W), all uint8."""

    pre: NDArray[np.uint8]
    post: NDArray[np.uint8]
    label: NDArray[np.uint8]

    @property
    def damaged(self) -> NDArray[np.bool_]:
        """Where buildings are damaged or destroyed, shape (H, W)."""
        return self.label >= DAMAGED


@dataclass(frozen=True)
class _Tile:
    """A square of a scene: number of the scene, first row and column, side in pixels."""

    scene: int
    row: int
    col: int
    side: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns in the scene."""
        return slice(self.row, self.row + self.side), slice(self.col, self.col + self.side)


class Simulated:
    """Tiles of simulated scenes: optical before, SAR amplitude after, and background, intact, damaged or destroyed.

    Scenes are simulated here, some six a second for 512 x 512 px, and kept as 8 bit.

    Args:
        config: Which scenes and tiles.
        progress: Told of the scenes done and in all; may raise to stop.

    Attributes:
        ids: Name of each tile.
        groups: Scene of each tile.
        training: Indices of the training tiles.
        validation: Indices of the validation tiles.

    Raises:
        ConfigError: A scene cannot be simulated as specified.
    """

    pre_bands = BANDS_PRE
    post_bands = BANDS_POST

    def __init__(self, config: SimulatedConfig, progress: Progress = silent) -> None:
        learnt = config.training.specs(config.size, config.gsd)
        specs = [*learnt, *config.validation.specs(config.size, config.gsd)]
        self._scenes: list[_Pixels] = []
        self._tiles: list[_Tile] = []
        for number, spec in enumerate(specs):
            progress("simulate", number, len(specs))
            self._scenes.append(_simulated(spec))
            if number < len(learnt):
                self._tiles += _drawn(number, self._scenes[-1].damaged, spec.seed, config)
            else:
                self._tiles += _covering(number, config)
        progress("simulate", len(specs), len(specs))
        names = [f"{spec.event}-{spec.layout}-{spec.palette}-{spec.seed}" for spec in specs]
        self.groups: Sequence[str] = [names[tile.scene] for tile in self._tiles]
        self.ids: Sequence[str] = [
            f"{names[tile.scene]}/{number}/{tile.row}-{tile.col}" for number, tile in enumerate(self._tiles)
        ]
        count = config.tiles * len(learnt)
        self.training = np.arange(count)
        self.validation = np.arange(count, len(self._tiles))

    @property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of damaged pixels of each tile in [0, 1], shape (N,)."""
        return np.array([(self._scenes[tile.scene].label[tile.window] >= DAMAGED).mean() for tile in self._tiles])

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        tile = self._tiles[index]
        scene, window = self._scenes[tile.scene], tile.window
        target = scene.label[window]
        valid = np.ones(target.shape, dtype=np.bool_)
        pre, post = (np.divide(image[:, *window], 255, dtype=np.float32) for image in (scene.pre, scene.post))
        return to_sample(pre, post, target, valid, index)


def _simulated(spec: SceneSpec) -> _Pixels:
    scene = simulate_scene(spec)
    return _Pixels(scene.pre, scene.post, scene.label)


def _drawn(scene: int, damaged: NDArray[np.bool_], seed: int, config: SimulatedConfig) -> list[_Tile]:
    """Return training tiles: by chance around a damaged pixel, as far as the scene's edge allows, or anywhere."""
    random = np.random.default_rng([seed, _POSITION_STREAM])
    side, free = config.training_tile, config.size - config.training_tile
    places = np.argwhere(damaged)
    tiles = []
    for _ in range(config.tiles):
        corner = random.integers(0, free + 1, 2)
        if len(places) and random.random() < config.focus:
            corner = np.clip(random.choice(places) - side // 2, 0, free)
        tiles.append(_Tile(scene, int(corner[0]), int(corner[1]), side))
    return tiles


def _covering(scene: int, config: SimulatedConfig) -> list[_Tile]:
    """Return tiles side by side over the whole scene."""
    starts = range(0, config.size, config.tile)
    return [_Tile(scene, row, col, config.tile) for row in starts for col in starts]
