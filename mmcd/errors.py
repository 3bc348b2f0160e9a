"""Every error a user can meet: what was asked, what was found, what to do next.

The command line prints one line and leaves with ``exit_code``; the pages show the same two sentences.
"""


class MmcdError(Exception):
    """Base of all errors that are the fault of the input, the data or the machine, not of the program.

    Attributes:
        message: What was asked and what was found, one sentence.
        hint: The next step for the user, one sentence; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(MmcdError):
    """A file, image or table that cannot be used as it is."""


class RegionError(MmcdError):
    """A region that is empty, outside the scene or not readable."""


class ModelError(MmcdError):
    """A weight file or card that is missing, damaged or does not fit the scene."""


class DataError(MmcdError):
    """A data set whose layout, labels or split is not as published."""


class ConfigError(MmcdError):
    """A configuration that cannot be carried out."""


class UsageError(ConfigError):
    """Words on the command line that are not among the choices."""

    exit_code = 2


class StorageError(MmcdError):
    """A disk that is full or a place that cannot be written."""


class NetworkError(MmcdError):
    """Something that must be fetched and cannot be."""


class Cancelled(MmcdError):  # noqa: N818 - not an error, the user asked for it
    """The user stopped the job."""

    exit_code = 130
