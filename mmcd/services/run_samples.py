"""Sample predictions of a training: pictures that lie in its folder, and a picture of its held-out tiles.

A finished run of change keeps what its network said of the tiles that it did not train on (``held_out.npz``), so a
picture of them needs the tiles but not the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd.config import Config, read_yaml
from mmcd.errors import ConfigError, DataError
from mmcd.paths import workspace
from mmcd.progress import Progress, silent
from mmcd.services.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT, SAMPLES = "held_out.npz", "samples.png"
_INCHES = 2.4
_TENSORBOARD = "tensorboard"


class SamplesRequest(Config):
    """What to draw.

    Attributes:
        run: Name of a finished run of change.
        samples: Tiles to draw, spread evenly over the held-out ones.
    """

    run: str = Field(pattern=r"^[\w-][\w.-]*$")
    samples: int = Field(default=6, ge=1, le=50)


@dataclass(frozen=True)
class Picture:
    """A picture of predictions.

    Attributes:
        title: What it shows.
        content: The image file, PNG.
    """

    title: str
    content: bytes


def can_draw(folder: Path) -> bool:
    """Return whether a run keeps its held-out outputs, and none were drawn since they were written."""
    kept, drawn = folder / HELD_OUT, folder / SAMPLES
    return kept.is_file() and not (drawn.is_file() and drawn.stat().st_mtime >= kept.stat().st_mtime)


def kept_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a run's folder: of its held-out tiles, and those that ``mmcd train plot`` wrote there."""
    return tuple(sorted(folder.glob("*.png")))


def has_panels(folder: Path) -> bool:
    """Return whether a run wrote for TensorBoard."""
    return any((folder / _TENSORBOARD).glob("events.out.*"))


def latest_panels(folder: Path) -> tuple[Picture, ...]:
    """Return the newest picture of each kind that a run wrote for TensorBoard; none if it wrote curves alone."""
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    found: dict[str, Picture] = {}
    for path in sorted((folder / _TENSORBOARD).glob("events.out.*")):
        events = EventAccumulator(str(path), size_guidance={IMAGES: 1})
        events.Reload()
        for tag in events.Tags()["images"]:
            last = events.Images(tag)[-1]
            found[tag] = Picture(f"{tag}, step {last.step:,}", last.encoded_image_string)
    return tuple(found.values())


def draw_samples(request: SamplesRequest, progress: Progress = silent) -> dict[str, Any]:
    """Draw both images, the label and the probability of held-out tiles into the run's folder.

    Returns:
        ``run`` and ``path`` of the picture.

    Raises:
        ConfigError: The run is not there, is no run of change or held nothing out.
        DataError: Its data are not there any more, or are others.
    """
    folder = workspace() / "training" / request.run
    path = folder / HELD_OUT
    if not path.is_file():
        raise ConfigError(
            f"The run {request.run!r} keeps no outputs of held-out tiles.",
            "Finished runs of change that validate keep them; others have none to draw.",
        )
    # Both take seconds to import.
    from mmcd.training.config import ChangeTraining
    from mmcd.training.splits import open_split
    from mmcd.training.validation import Outputs

    config = ChangeTraining.model_validate(read_yaml(folder / "config.yaml"))
    outputs = Outputs.load(path)
    dataset = open_split(config, progress).dataset
    places = {name: number for number, name in enumerate(dataset.ids)}
    chosen = _spread(outputs.changed, request.samples)
    rows = []
    for done, number in enumerate(chosen):
        progress("draw", done, len(chosen))
        name = outputs.ids[number]
        if name not in places:
            raise DataError(f"{name} is not in the run's data any more.", "Put the data back as they were.")
        sample: Mapping[str, Any] = dataset[places[name]]
        probability = 1 / (1 + np.exp(-outputs.logit[number].astype(np.float32)))
        rows.append((name, _shown(sample["pre"]), _shown(sample["post"]), outputs.changed[number], probability))
    out = folder / SAMPLES
    write_figure(out, (4 * _INCHES + 0.6, len(rows) * _INCHES + 0.4), lambda figure: _draw(figure, rows))
    progress("draw", len(chosen), len(chosen))
    return {"run": request.run, "path": str(out)}


def _spread(changed: NDArray[np.bool_], number: int) -> list[int]:
    """Return tiles spread evenly from the least to the most changed one, so that both kinds of error can be seen."""
    order = np.argsort(changed.reshape(len(changed), -1).mean(axis=1), kind="stable")
    return [
        int(order[at]) for at in np.unique(np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int))
    ]


def _shown(image: Any) -> NDArray[np.float32]:
    """Return an image for display, shape (H, W, 3), in [0, 1]: percentiles 2 and 98 of each band to black and white."""
    values = np.asarray(image, dtype=np.float32)[:3]
    values = values if len(values) == 3 else np.repeat(values[:1], 3, axis=0)
    low, high = np.percentile(values, (2, 98), axis=(1, 2), keepdims=True)
    stretched: NDArray[np.float32] = np.clip((values - low) / np.maximum(high - low, 1e-6), 0, 1).transpose(1, 2, 0)
    return stretched


def _draw(figure: "Figure", rows: list[tuple[Any, ...]]) -> None:
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, (name, *panels) in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            axis.imshow(panel, cmap="magma" if panel is panels[-1] else "gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize="x-small")
    for axis, title in zip(axes[0], ("Before", "After", "Label", "Output, not calibrated"), strict=True):
        axis.set_title(title, fontsize="small")
