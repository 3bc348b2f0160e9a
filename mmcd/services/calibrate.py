"""Calibrate a model from the command line: labelled scores of a run or a data set become a new version of its card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from mmcd.calibration import Method
from mmcd.cards import Card, card_reference
from mmcd.config import Config
from mmcd.errors import DataError, UsageError
from mmcd.progress import Progress, silent
from mmcd.services.accuracy import Measured, measure_run
from mmcd.services.accuracy_data import AccuracyRequest, DatasetName, load_measured, measure_dataset
from mmcd.services.exports import find_run, one_of_run_and_data
from mmcd.services.recalibrate import fit_calibration, refusal, save_calibration
from mmcd.services.scenes import get_scene


class CalibrateRequest(Config):
    """Which labelled scores a calibration is fitted on, and how.

    Attributes:
        run: Id or folder of a run of a labelled scene; or give ``dataset``.
        method: How it is fitted, see `mmcd.calibration`.
        threshold: Probability where the old version is cut; the new one's threshold cuts at the same place. The
            model's own when left out.
        dataset: Name of a data set.
        root: Its folder.
        model: Model for the data set.
        event: One event of it; all when left out.
        split: Part of it; all when left out.
        scores: Folder that `mmcd evaluate --scores` filled; nothing is then scored again.
    """

    run: str | None = None
    method: Method = "temperature"
    threshold: float | None = Field(None, ge=0, le=1)
    dataset: DatasetName | None = None
    root: Path | None = None
    model: str | None = None
    event: str | None = None
    split: str | None = None
    scores: Path | None = None

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices, or not exactly one of a run and a data set is named.
        """
        request = super().checked(**values)
        one_of_run_and_data(request.run, request.dataset, request.root, request.model)
        of_data = {name: getattr(request, name) for name in ("root", "model", "event", "split", "scores")}
        if request.run is not None and any(value is not None for value in of_data.values()):
            named = ", ".join(f"--{name}" for name, value in of_data.items() if value is not None)
            raise UsageError(f"{named} belongs to a data set, and a run is given.", "Leave it out, or name a data set.")
        return request


@dataclass(frozen=True)
class Calibrated:
    """A new version of a card.

    Attributes:
        path: Its file.
        card: The card.
        fitted_on: What the calibration was fitted on, for people.
        errors: ``ece`` and ``log_loss`` (nats) of the scores ``before``, ``after`` and, of several events,
            ``held_out``: each calibrated by a fit on the others.
    """

    path: Path
    card: Card
    fitted_on: str
    errors: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return what was made, as JSON values."""
        return {
            "model": card_reference(self.card),
            "card": str(self.path),
            "threshold": self.card.decision.threshold,
            "fitted_on": self.fitted_on,
            **self.errors,
        }


def calibrate(request: CalibrateRequest, progress: Progress = silent) -> Calibrated:
    """Fit a calibration and keep it as a new version of the model's card; the old card stays as it is.

    Raises:
        InputError: The run does not exist or has no scene.
        DataError: There are no labels, or too little in them to fit on.
        ModelError: The card that scored is not here, or cannot carry such a calibration.
        StorageError: The workspace cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    measured = _of_run(request.run) if request.run is not None else _of_data(request, progress)
    cut = measured.threshold if request.threshold is None else request.threshold
    path, card = save_calibration(measured, request.method, cut)
    fitted = fit_calibration(measured, request.method)
    errors = {"before": fitted.before, "after": fitted.after}
    if fitted.held_out is not None:
        errors["held_out"] = fitted.held_out
    return Calibrated(path, card, measured.title, errors)


def _of_run(text: str) -> Measured:
    run = find_run(text)
    why = refusal(run)
    if why is not None:
        raise DataError(why, "Run the scene again without --adapt.")
    if run.scene_id is None:
        raise DataError("This run is of two files, which have no labels.", "Add them as a scene with --label.")
    return measure_run(run, get_scene(run.scene_id))


def _of_data(request: CalibrateRequest, progress: Progress) -> Measured:
    names = ("model", "dataset", "root", "event", "split", "scores")
    asked = AccuracyRequest.checked(**{name: getattr(request, name) for name in names})
    return load_measured(measure_dataset(asked, progress))
