"""Configurations to start a training from, and what a form changes in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcd.config import parse_overrides, read_yaml
from mmcd.errors import ConfigError, DataError
from mmcd.paths import shipped, workspace
from mmcd.services.train import TASKS, TrainRequest

_LAST = "last.ckpt"  # as in mmcd.training.runs, which takes seconds to import


@dataclass(frozen=True)
class TrainingConfig:
    """A configuration file, read but not checked: checking it takes the training's own libraries, which are slow.

    Attributes:
        path: The file.
        text: What stands in it.
        about: What its first comment says.
        values: Its values.
    """

    path: Path
    text: str
    about: str
    values: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Its ``task``; empty for change as a mask."""
        return str(self.values.get("task") or "")

    @property
    def name(self) -> str:
        """Name of the run that it trains."""
        return str(self.values.get("name") or self.path.stem)

    def value(self, key: str) -> Any:
        """Return what stands at a dotted key; None where nothing does."""
        found: Any = self.values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    @property
    def root(self) -> str | None:
        """Folder of its data as it stands there; None for a training that makes its own."""
        root = self.value("data.root")
        return None if root is None else str(root)

    @property
    def length(self) -> str:
        """Key of how long it trains."""
        return "trainer.steps" if self.value("trainer.steps") is not None else "trainer.epochs"


def list_configs() -> dict[str, TrainingConfig]:
    """Return the shipped configurations by the name of their file."""
    return {path.stem: read_config(path) for path in sorted(shipped("configs").glob("*.yaml"))}


def read_config(path: Path) -> TrainingConfig:
    """Read a configuration file.

    Raises:
        ConfigError: It is missing, no YAML, or for a task that is not there.
    """
    values = read_yaml(path)
    task = values.get("task")
    if task is not None and task not in TASKS:
        raise ConfigError(f"{path}: there is no task {task!r}.", f"Write one of {', '.join(TASKS)}, or none.")
    text = path.read_text(encoding="utf-8")
    return TrainingConfig(path, text, _about(text), values)


def free_name(name: str) -> str:
    """Return a name that no run has: the name itself, or with the first free number."""
    number, free = 1, name
    while (workspace() / "training" / free / _LAST).is_file():
        number += 1
        free = f"{name}-{number}"
    return free


def training_request(
    config: TrainingConfig, name: str, root: str | None, options: Mapping[str, Any], more: str = ""
) -> TrainRequest:
    """Return what the worker is asked to do.

    Args:
        config: What to start from.
        name: Name of the run.
        root: Folder of the data, relative to where the app was started; None where the configuration has none.
        options: Values by dotted key; None leaves what the file says.
        more: Further ``KEY=VALUE``, one a line, over all others.

    Raises:
        ConfigError: A line of ``more`` is none, or the run exists.
        DataError: The folder is not there.
    """
    overrides: dict[str, Any] = {} if name == config.name else {"name": name}
    if root is not None:
        folder = Path(root).expanduser()
        if not root or not folder.is_dir():
            raise DataError(
                f"There is no folder {root or '(none given)'} on this machine.",
                "Give the data set's folder; see `mmcd data --help`.",
            )
        overrides["data.root"] = str(folder.resolve())  # the worker may run elsewhere
    overrides |= {key: value for key, value in options.items() if value is not None}
    overrides |= parse_overrides([line.strip() for line in more.splitlines() if line.strip()])
    wanted = str(overrides.get("name", config.name))
    if (workspace() / "training" / wanted / _LAST).is_file():
        raise ConfigError(f"There is a run {wanted!r} already.", f"Choose another name, such as {free_name(wanted)}.")
    return TrainRequest(config=config.path.resolve(), overrides=overrides)


def command(request: TrainRequest) -> str:
    """Return the command that does the same."""
    parts = [f"mmcd train start --config {request.config}"]
    return " \\\n  ".join([*parts, *(f"--set {key}={_quoted(value)}" for key, value in request.overrides.items())])


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text.replace(".", "").replace("/", "").replace("-", "").replace("_", "").isalnum() else f"'{text}'"


def _about(text: str) -> str:
    """Return what the comment at the head of a file says before its first command, as one paragraph."""
    lines: list[str] = []
    for line in text.splitlines():
        words = line.lstrip("# ").strip()
        if not line.startswith("#") or words.startswith("mmcd "):
            break
        lines.append(words)
    sentences = " ".join(lines).split(". ")
    if len(sentences) > 1 and sentences[-1].endswith(":"):  # announces the command
        sentences.pop()
    return ". ".join(sentences).rstrip(" .:") + "." if lines else ""
