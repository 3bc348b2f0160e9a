"""The trainings of the workspace: what they are, how they differ, and keeping the weights of one under a name."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmcd.cards import card_reference, is_trunk_card, known_cards, read_card, verify_weights, write_card
from mmcd.config import read_yaml
from mmcd.errors import ConfigError, InputError, MmcdError, ModelError
from mmcd.jobs import Job, open_store
from mmcd.paths import workspace, workspace_folder
from mmcd.services.own_weights import copy_weights, write_new
from mmcd.services.tracking import Tracked, list_tracked
from mmcd.services.train import TrainRequest
from mmcd.services.train_job import run_name
from mmcd.trunk_cards import list_trunks, read_trunk_card, write_trunk_card

RunState = Literal["waiting", "running", "finished", "stopped", "failed"]

TASK_WORDS = {
    "": "Change between two images",
    "patches": "Pairs of patches",
    "pretrain": "Trunk without labels",
    "downstream": "Task on a pretrained trunk",
}
"""What a configuration's ``task`` says, for people; none trains change as a mask."""

MAIN_FIGURES = ("val/ap_shift", "val/miou", "val/ap", "val/accuracy", "val/f1", "val/loss", "train/loss")
"""Metrics by which runs are listed, the first that a run has."""

SILENT = timedelta(minutes=15)
"""How long a training that says to run may write nothing before it is taken for interrupted."""

_CONFIG, _LAST, _RESULT = (
    "config.yaml",
    "last.ckpt",
    "result.json",
)  # as in mmcd.training, which takes seconds to import
_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class TrainingRun:
    """One training.

    Attributes:
        name: Its name, and that of its folder.
        folder: Where its configuration, checkpoints and weights are; may be gone.
        task: ``task`` of its configuration; empty for change as a mask.
        state: How far it is.
        started: When it began, UTC; None while it waits.
        seconds: How long it took, or takes so far.
        settings: Its configuration, text by dotted key.
        figures: Latest value of each metric.
        ids: MLflow's ids of its parts; none if it was not tracked.
        job: Id of the job that trains it now.
        card: The card that it left, if it left one.
    """

    name: str
    folder: Path
    task: str
    state: RunState
    started: datetime | None
    seconds: float | None
    settings: Mapping[str, str]
    figures: Mapping[str, float]
    ids: tuple[str, ...]
    job: str | None
    card: Path | None

    @property
    def main_figure(self) -> tuple[str, float] | None:
        """Name and latest value of the metric that it is listed by."""
        return next(((name, self.figures[name]) for name in MAIN_FIGURES if name in self.figures), None)

    @property
    def data(self) -> str:
        """What it learns from, in a few words."""
        root = self.settings.get("data.root", "")
        parts = (self.settings.get("data.source", ""), Path(root).name if root not in ("", "None") else "")
        return " · ".join(dict.fromkeys(part for part in parts if part)) or "–"

    def to_dict(self) -> dict[str, Any]:
        """Return what a list of runs tells, as JSON values; a figure that is not a number is None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        main = self.main_figure
        return {
            "name": self.name,
            "task": self.task or "change",
            "state": self.state,
            "started": self.started.isoformat() if self.started else None,
            "seconds": self.seconds,
            "folder": str(self.folder),
            "card": str(self.card) if self.card else None,
            "figure": {main[0]: figures[main[0]]} if main else {},
            "figures": figures,
        }


def list_trainings() -> dict[str, TrainingRun]:
    """Return the trainings of the workspace by name, the newest first.

    Raises:
        StorageError: MLflow's store cannot be read.
    """
    tracked, jobs = list_tracked(), _jobs()
    root = workspace() / "training"
    folders = {path.parent.name for path in root.glob(f"*/{_CONFIG}")}
    found = [_training(name, root / name, tracked.get(name), jobs.get(name)) for name in {*tracked, *folders, *jobs}]
    newest = datetime.max.replace(tzinfo=UTC)
    ordered = sorted(found, key=lambda run: (run.started or newest, run.name), reverse=True)
    return {run.name: run for run in ordered}


def differing(runs: Sequence[TrainingRun]) -> list[dict[str, str]]:
    """Return the settings in which runs differ, one row each: ``Setting`` and a value by name; a dash for none."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = []
    for key in keys:
        values = {run.name: run.settings.get(key, "–") for run in runs}
        if key != "name" and len(set(values.values())) > 1:
            rows.append({"Setting": key, **values})
    return rows


def find_training(name: str) -> TrainingRun:
    """Return a training of the workspace.

    Raises:
        InputError: There is none with this name.
        StorageError: MLflow's store cannot be read.
    """
    known = list_trainings()
    if name not in known:
        raise InputError(f"There is no training {name!r}.", f"Trainings here: {', '.join(known) or 'none'}.")
    return known[name]


def register_weights(run: TrainingRun, name: str | None = None, version: str | None = None) -> tuple[Path, str]:
    """Copy weights and card of a run into the workspace's weights, never over others.

    The weights are those of the checkpoint that the run keeps, the best one of its validation unless it says otherwise.

    Args:
        run: A finished run.
        name: What the model is to be called; as its card says when left out.
        version: Its version; as its card says when left out.

    Returns:
        Path of the new card, and the word that names it to `mmcd.cards.find_card` or `mmcd.trunk_cards.find_trunk`.

    Raises:
        InputError: Name or version are no words.
        ModelError: The run left no card, its weights are damaged, or the name is taken.
        StorageError: The workspace cannot be written.
    """
    if run.card is None:
        raise ModelError(
            f"The run {run.name!r} left no weights with a card.",
            "Only finished runs whose configuration has an `export` part leave one.",
        )
    trunk = is_trunk_card(run.card)
    old: Any = read_trunk_card(run.card) if trunk else read_card(run.card)
    name, version = name or old.name, version or old.version
    for what, word in {"name": name, "version": version}.items():
        if not _NAME.fullmatch(word):
            raise InputError(f"The {what} {word!r} is no word.", "Use letters, digits, dots, + and -.")
    _refuse_taken(name, version, trunk)
    renamed = old.model_copy(update={"name": name, "version": version})
    weights = copy_weights(verify_weights(run.card, old), renamed)
    card = renamed.model_copy(update={"weights": weights.name})
    path = workspace_folder("weights") / f"{name}-{version}.toml"
    if not write_new(path, partial(write_trunk_card if trunk else write_card, card)):
        raise _taken(name, version)
    return path, name if trunk else card_reference(card)


def own_card(folder: Path) -> Path | None:
    """Return the card that a run left in its folder; None if it left none."""
    return next(iter(sorted(folder.glob("*.toml"))), None)


def _refuse_taken(name: str, version: str, trunk: bool) -> None:
    models = {(card.name, card.version) for _, card in known_cards()}
    trunks = {card.name for _, card in list_trunks()}
    # Trunks are asked for by name alone, so a second version would never be found.
    if (name, version) in models or name in trunks or (trunk and name in {model for model, _ in models}):
        raise _taken(name, version)


def _taken(name: str, version: str) -> ModelError:
    return ModelError(f"There is a {name} already that {version} would hide.", "Choose another name or version.")


def _jobs() -> dict[str, Job]:
    """Return the jobs that train, or wait to, by the name of their run."""
    found: dict[str, Job] = {}
    for job in open_store(workspace()).active("train"):
        try:
            asked = TrainRequest.checked(**job.request)
            found[run_name(asked)] = job
        except MmcdError:  # the job itself will say what is wrong
            continue
    return found


def _training(name: str, folder: Path, tracked: Tracked | None, job: Job | None) -> TrainingRun:
    card = own_card(folder)
    done = card is not None or any((folder / file).is_file() for file in (f"{name}.safetensors", _RESULT))
    settings = tracked.settings if tracked else _settings(folder)
    state = _state(folder, tracked, job, done)
    started = tracked.started if tracked else (job.started if job else _moment(folder / _CONFIG))
    return TrainingRun(
        name=name,
        folder=folder,
        task=settings.get("task", ""),
        state=state,
        started=started,
        seconds=_seconds(tracked, state),
        settings=settings,
        figures=tracked.figures if tracked else {},
        ids=tracked.ids if tracked else (),
        job=job.id if job else None,
        card=card,
    )


def _state(folder: Path, tracked: Tracked | None, job: Job | None, done: bool) -> RunState:
    if job is not None:
        return "running" if job.state == "running" else "waiting"
    if tracked is None:
        return "finished" if done else "stopped"
    if tracked.state == "RUNNING":
        # A killed process leaves this word for ever.
        moments = (tracked.started, tracked.last, _moment(folder / _LAST))
        heard = max(moment for moment in moments if moment is not None)
        return "running" if datetime.now(UTC) - heard < SILENT else "stopped"
    return {"FINISHED": "finished", "FAILED": "failed"}.get(tracked.state, "stopped")  # type: ignore[return-value]


def _seconds(tracked: Tracked | None, state: RunState) -> float | None:
    if tracked is None:
        return None
    end = datetime.now(UTC) if state == "running" else tracked.ended or tracked.last
    return (end - tracked.started).total_seconds() if end else None


def _settings(folder: Path) -> dict[str, str]:
    """Return the settings of a run that was not tracked; none where its file is damaged."""
    try:
        return dict(_flat(read_yaml(folder / _CONFIG)))
    except ConfigError:
        return {}


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found += _flat(value, f"{before}{key}.") if nested else [(f"{before}{key}", str(value))]
    return found


def _moment(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None
