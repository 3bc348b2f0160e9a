"""The reference's picture of what a model says: both images, the label and the prediction, one row a pair."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd.config import Config
from mmcd.data.base import Sample
from mmcd.data.levir_files import Part
from mmcd.models.devices import Device, Precision
from mmcd.progress import Progress, silent
from mmcd.score import threshold_value
from mmcd.services.figures import write_figure
from mmcd.services.levir_model import either, open_pairs, score_sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 3.0
"""Side of one panel."""


class PlotRequest(Config):
    """What to show.

    Attributes:
        run: Name or folder of a finished run; or give ``model``.
        model: Name of a model, path of a card or of a checkpoint of reference system 1.
        dataset: Layout of the data set.
        root: Its folder.
        split: Part of it; the first pairs of all when left out.
        samples: Pairs to show, the first ones; no others are read.
        out: PNG to write.
        device: Device to run on.
        precision: Arithmetic to run in.
    """

    run: str | None = None
    model: str | None = None
    dataset: Literal["levir"] = "levir"
    root: Path
    split: Part | None = None
    samples: int = Field(default=10, ge=1, le=100)
    out: Path = Path("results.png")
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class PlotResult:
    """What was drawn.

    Attributes:
        path: The picture.
        pairs: Names of the pairs in it, from top to bottom.
        threshold: Probability above which a pixel is drawn as changed.
        warnings: Files without a partner, which were left out.
    """

    path: Path
    pairs: tuple[str, ...]
    threshold: float
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the few lines a person wants to see."""
        return {"path": self.path, "pairs": ", ".join(self.pairs), "threshold": self.threshold}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        listed = {"pairs": list(self.pairs), "warnings": list(self.warnings)}
        return {"path": str(self.path), "threshold": self.threshold, **listed}


def plot_predictions(request: PlotRequest, progress: Progress = silent) -> PlotResult:
    """Run a model on the first pairs of a data set and draw them in four columns.

    Raises:
        UsageError: Run and model are both given, or neither.
        DataError: There are no such pairs, or an image is damaged.
        ModelError: The model is missing, damaged or of another kind.
        StorageError: The picture cannot be written.
    """
    model = either(request.run, request.model, request.device, request.precision)
    pairs = open_pairs(request.root, request.split, model.size)
    names = pairs.ids[: request.samples]
    threshold = model.card.decision.threshold
    rows: list[tuple[NDArray[Any], ...]] = []
    for number in range(len(names)):
        progress("score", number, len(names))
        sample = pairs[number]
        changed = score_sample(sample, model) >= threshold_value(threshold)
        rows.append((_colours(sample, "pre"), _colours(sample, "post"), sample["target"].numpy() > 0, changed))
    progress("score", len(names), len(names))
    titles = ("Input A", "Input B", "Ground truth", f"Prediction > {threshold:.2f}")
    write_figure(
        request.out, (4 * _INCHES, len(rows) * _INCHES), lambda figure: _draw(figure, rows, tuple(names), titles)
    )
    return PlotResult(request.out, tuple(names), threshold, pairs.unpaired)


def _colours(sample: Sample, image: Literal["pre", "post"]) -> NDArray[np.float32]:
    """Return an image as it was before the statistics of the card were taken off, shape (H, W, 3), in [0, 1]."""
    values: NDArray[np.float32] = sample[image].numpy().transpose(1, 2, 0)
    return values


def _draw(
    figure: "Figure", rows: list[tuple[NDArray[Any], ...]], names: tuple[str, ...], titles: tuple[str, ...]
) -> None:
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis, panel in zip(line, row, strict=True):
            axis.imshow(panel, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize="x-small")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
