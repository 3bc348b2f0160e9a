"""OSCD: what was built between two Sentinel-2 images, from the difference of a trunk's features.

The protocol of SeCo (Mañas et al. 2021), mended in two ways: the epoch is chosen on training cities that are held out
and not on the test cities, and what a square holds beyond its city's edge counts nowhere.
"""

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmcd.data.oscd import RGB, SIDE, OscdPatches, Scaling, band_ranges, hold_out_cities, read_cities
from mmcd.data.oscd_files import index_oscd
from mmcd.errors import DataError
from mmcd.losses.segmentation import binary_cross_entropy, soft_dice
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.decoding import (
    PixelConfig,
    PixelJob,
    PixelLoss,
    PixelTask,
    build_model,
    measure_groups,
    plain_batches,
    pooled,
    training_batches,
)
from mmcd.training.downstream import (
    DownstreamData,
    DownstreamOptimiser,
    Outcome,
    RunPlace,
    fit_downstream,
)


class OscdData(DownstreamData):
    """Which images.

    Attributes:
        source: The data set.
        bands: Names of the bands, in channel order; red, green and blue, or up to all 13.
        scaling: Which stored values become 0 and 1, see `mmcd.data.oscd.band_ranges`.
        side: Side of a square in pixels.
        held_out: Training cities that choose the epoch, drawn by the seed of a run; with 0 the last epoch is measured.
    """

    source: Literal["oscd"] = "oscd"
    bands: tuple[str, ...] = RGB
    scaling: Scaling = "auto"
    side: int = Field(default=SIDE, ge=32, multiple_of=32)
    held_out: int = Field(default=3, ge=0)


class OscdOptimiser(DownstreamOptimiser):
    """As published: Adam, the rate 5 % less every epoch."""

    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["constant", "multistep", "exponential"] = "exponential"
    gamma: float = Field(default=0.95, gt=0, le=1)


class OscdConfig(PixelConfig):
    """OSCD; the defaults are the protocol of SeCo.

    Attributes:
        name: Name of the run.
        data: Data set.
        optimiser: Optimiser.
        loss: Binary cross entropy, or the Dice loss of SACo (reference system 2).
    """

    name: str = Field(default="oscd", pattern=r"^[\w.-]+$")
    data: OscdData
    optimiser: OscdOptimiser = OscdOptimiser()
    loss: Literal["bce", "dice"] = "bce"


def run_oscd(config: OscdConfig, seed: int, place: RunPlace) -> Outcome:
    """Train on the official training cities without the held-out ones, and measure on the official test cities.

    Raises:
        DataError: The data set is not there, not whole or damaged.
        ModelError: There is no such trunk, or it is damaged.
    """
    index = index_oscd(config.data.root, config.data.bands)
    learning, held = hold_out_cities(index, config.data.held_out, seed)
    if not index.cities["test"]:
        raise DataError(f"{config.data.root} has no test city.", "Unpack all images and the archive of test labels.")
    arrays = read_cities(learning)
    ranges = band_ranges(index.bands, config.data.scaling, arrays)
    training = OscdPatches(arrays, ranges, config.data.side)
    choosing, testing = (
        OscdPatches(read_cities(cities), ranges, config.data.side) for cities in (held, index.cities["test"])
    )
    job = PixelJob(("pre", "post"), 2, _LOSSES[config.loss], _f1, "f1")
    task = PixelTask(build_model(config, index.bands, 2, seed), job, config, seed)
    fit_downstream(
        task,
        training_batches(training, config, seed),
        plain_batches(choosing, config) if held else None,
        config,
        place,
        ("val/f1", "max"),
    )
    matrices = measure_groups(task, testing, config)
    return Outcome(
        figures=change_figures(pooled(matrices, 2)),
        weights=task.model.state_dict(),
        samples={"train": len(training), "held out": len(choosing), "test": len(testing)},
        unit=_UNIT,
        details={
            "held_out_cities": [city.id for city in held],
            "cities": {name: _told(matrix) for name, matrix in matrices.items()},
            "lower": list(ranges.lower),
            "upper": list(ranges.upper),
        },
        warnings=index.warnings,
    )


def change_figures(matrix: ConfusionMatrix) -> dict[str, float]:
    """Return the figures of a matrix of unchanged and changed; one that does not exist is NaN."""
    hits, labelled, mapped = (int(values[1]) for values in (matrix.hits, matrix.labelled, matrix.mapped))
    return {
        "precision": hits / mapped if mapped else float("nan"),
        "recall": hits / labelled if labelled else float("nan"),
        "f1": _f1(matrix),
        "iou": float(matrix.iou[1]),
        "accuracy": matrix.accuracy,
    }


_UNIT = (
    "share of pixels of all test cities pooled, changed where the probability is at least one half; pixels beyond a "
    "city's edge count nowhere; test cities choose nothing"
)


def _told(matrix: ConfusionMatrix) -> dict[str, Any]:
    figures = {name: None if math.isnan(value) else value for name, value in change_figures(matrix).items()}
    return {"changed_px": int(matrix.labelled[1]), **figures}


def _f1(matrix: ConfusionMatrix) -> float:
    return float(matrix.f1[1])


def _bce(logits: Tensor, target: Tensor, valid: Tensor, epoch: int) -> Tensor:
    return binary_cross_entropy(logits[:, 0], target, valid)


def _dice(logits: Tensor, target: Tensor, valid: Tensor, epoch: int) -> Tensor:
    return soft_dice(logits[:, 0], target, valid, smooth=1e-6)


_LOSSES: dict[str, PixelLoss] = {"bce": _bce, "dice": _dice}
