"""Base of every job's configuration: YAML in, checked values out, the resolved YAML saved with the run."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmcd.errors import ConfigError, UsageError


class Config(BaseModel):
    """A frozen, strict set of options. Unknown keys are errors, so a typing mistake never trains a wrong model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> Self:
        """Read a YAML file and apply ``overrides`` given as dotted keys (``trainer.epochs``).

        Raises:
            ConfigError: The file is missing, is not YAML or holds a value that does not fit.
        """
        values = read_yaml(path)
        for key, value in (overrides or {}).items():
            _set_dotted(values, key, value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            whole = first["msg"].removeprefix("Value error, ")  # options that do not go together: it names them
            raise ConfigError(
                f"{path}: `{where}` {first['msg'].lower()}." if where else f"{path}: {whole}.",
                "Correct it in the file or with --set KEY=VALUE.",
            ) from error

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # options that do not go together: the sentence names them
                raise UsageError(f"{first['msg'].removeprefix('Value error, ')}.", "See --help.") from error
            option = f"--{str(first['loc'][0]).replace('_', '-')}"
            raise UsageError(f"{option} {first['input']!r}: {first['msg'].lower()}.", "See --help.") from error

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Turn ``["trainer.epochs=3"]`` into ``{"trainer.epochs": 3}``; values are read as YAML.

    Raises:
        ConfigError: An entry has no ``=``.
    """
    parsed = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {pair!r} is not KEY=VALUE.", "Write for example --set trainer.epochs=5.")
        parsed[key.strip()] = yaml.safe_load(value)
    return parsed


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values, unchecked.

    Raises:
        ConfigError: The file is missing or is not such a file.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}.", "Correct the file.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no key: value pairs.", "Start from a file in configs/.")
    return values


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        nested = values.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"--set {key}: `{parent}` is not a group of options.", "Look at the file's keys.")
        values = nested
    values[last] = value
