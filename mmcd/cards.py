"""Model cards: the TOML file beside a weight file that says what the weights are for and how to read their scores.

A card is enough to choose a model, prepare its inputs and turn its outputs into probabilities; nothing here
needs torch.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import tomli_w
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from mmcd.config import Config
from mmcd.errors import ModelError
from mmcd.paths import weights_dir, workspace_folder

Modality = Literal["optical", "sar"]
Unit = Literal["db", "reflectance", "uint8"]
Scaling = Literal["scene", "patch"]

_MODEL, _TRUNK = "architecture", "trunk"
"""What the card of a model and that of a trunk hold at their top, and the other does not."""

BUILDING_CLASSES = ("background", "intact", "damaged", "destroyed")
"""Classes of a head that tells buildings, whatever their state, from everything else."""


class Level(Config):
    """A scene's own reference level: one of its percentiles is moved to a fixed stretched value.

    Two radar images of one ground differ in level by more than water and land do: calibration, incidence angle and
    wetness shift a whole scene, and tiles that were stretched one by one have lost it. A high percentile is land even
    where most of a scene is flooded.

    Attributes:
        percentile: Percentile of the scene's stretched values, in [0, 100].
        value: Where it is moved to, in [0, 1].
    """

    percentile: float = Field(ge=0, le=100)
    value: float = Field(ge=0, le=1)


class Branch(Config):
    """What one branch of the model expects.

    Attributes:
        modality: Kind of sensor.
        sensor: Sensor of the training data, for people.
        bands: Standard band names in channel order (``B8``, ``VV``, ``red`` ...).
        unit: Physical unit that values are brought to before the stretch; 8-bit display values pass as they are.
        scaling: What values are scaled by. ``scene``: percentiles and level of the whole scene, then mean and standard
            deviation of the training set. ``patch``: every band of every patch by its own mean and standard deviation,
            SAR after ``log(1 + x)`` (`mmcd.data.patches`); the rest is then not used.
        percentiles: Whole-scene percentiles that are mapped to 0 and 1, computed once a scene.
        level: Shift of the stretched values to a common level, computed once a scene; none leaves them.
        mean: Mean of the stretched values of each band, in [0, 1].
        std: Standard deviation of the stretched values of each band, in [0, 1].
    """

    modality: Modality
    sensor: str
    bands: tuple[str, ...] = Field(min_length=1, max_length=13)
    unit: Unit
    scaling: Scaling = "scene"
    percentiles: tuple[float, float] = (0.5, 99.5)
    level: Level | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Gsd(Config):
    """Ground sample distance in metres: what the model was trained at, and where it may be used."""

    nominal: float = Field(gt=0)
    min: float = Field(gt=0)
    max: float = Field(gt=0)


class Decision(Config):
    """How head logit and cosine become a calibrated probability of change, and where it is cut.

    ``p = sigmoid(slope * (head_weight * logit + cosine_weight * (1 - cosine)) + intercept)``; where ``beta`` is given,
    this ``p`` becomes ``sigmoid(a ln p - b ln(1 - p) + c)`` (Kull et al. 2017).

    Attributes:
        head_weight: Weight of the per-pixel head's logit.
        cosine_weight: Weight of the embedding distance ``1 - cosine``, in [0, 2], upsampled to pixels.
        slope: Slope of the probability calibration.
        intercept: Intercept of the probability calibration.
        threshold: Probability from which a pixel counts as changed.
        prevalence: Share of changed pixels that calibration and threshold were chosen for.
        beta: ``a``, ``b`` and ``c`` of a beta calibration that follows; neither ``a`` nor ``b`` is negative.
    """

    head_weight: float
    cosine_weight: float
    slope: float = 1.0
    intercept: float = 0.0
    threshold: float = Field(ge=0, le=1)
    prevalence: float | None = None
    beta: tuple[float, float, float] | None = None

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.beta is not None and min(self.beta[:2]) < 0:
            raise ValueError("beta must rise with the probability: its first two numbers are not negative")
        return self

    @model_serializer(mode="wrap")
    def _without_absent_beta(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a calibration that is not there: cards, manifests and hashes stay as they were before it was."""
        values: dict[str, Any] = handler(self)
        return values if self.beta is not None else {key: item for key, item in values.items() if key != "beta"}


class Card(Config):
    """Everything that must be known of a weight file without opening it.

    Attributes:
        name: Name of the model, as given to ``--model``.
        version: Version of the weights.
        title: One line for people.
        description: What it finds, what it learned from, what it cannot do.
        event_types: Event types it was trained for; empty means any.
        simulated: Whether it learned from simulated images only, and never saw a real one.
        architecture: Which class of ``mmcd.models`` the weights belong to.
        settings: Constructor arguments of that class.
        weights: File name of the safetensors file beside the card.
        sha256: Hash of that file.
        pre: Input before the event.
        post: Input after the event.
        gsd: Ground sample distances.
        classes: Class names; index 0 is unchanged.
        decision: From outputs to probability and threshold.
        training: Data, split, schedule and seeds, for people.
        metrics: Measured results, one table an evaluation.
        licence: Rights of the weights and of their training data.
    """

    name: str
    version: str
    title: str
    description: str
    event_types: tuple[str, ...] = ()
    simulated: bool = False
    architecture: Literal["siamese", "fusion_unet"]
    settings: dict[str, Any]
    weights: str
    sha256: str
    pre: Branch
    post: Branch
    gsd: Gsd
    classes: tuple[str, ...]
    decision: Decision
    training: dict[str, Any]
    metrics: tuple[dict[str, Any], ...] = ()
    licence: dict[str, str]

    @property
    def has_embeddings(self) -> bool:
        """Whether the network compares embeddings, which aligning needs; a fusion UNet has none."""
        return self.architecture == "siamese"

    @property
    def compares_optical(self) -> bool:
        """Whether it was made for two optical images, so that radar after the event means nothing to it."""
        return self.pre.modality == self.post.modality == "optical"

    @property
    def marks_buildings(self) -> bool:
        """Whether the network itself says where buildings stand: its head has `BUILDING_CLASSES`."""
        return self.classes == BUILDING_CLASSES and self.settings.get("classes") == len(BUILDING_CLASSES)


class Weighted(Protocol):
    """A card that names its weight file and knows its hash."""

    @property
    def name(self) -> str:
        """Name of model or trunk."""

    @property
    def weights(self) -> str:
        """File name of the weights beside the card."""

    @property
    def sha256(self) -> str:
        """Hash of that file."""


AnyCard = TypeVar("AnyCard", bound=Config)


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        ModelError: The file is missing, not TOML, lacks a field or is a trunk's card.
    """
    return read_card_as(Card, path)


def read_card_as(kind: type[AnyCard], path: Path) -> AnyCard:
    """Read a card of a model or of a trunk.

    Raises:
        ModelError: The file is missing, not TOML, lacks a field or is a card of the other kind.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ModelError(f"The card {path} cannot be read: {error.strerror}.", "See `mmcd weights list`.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"The card {path} is not TOML: {error}.", "Fetch the weights again.") from error
    if _TRUNK in values and _TRUNK not in kind.model_fields:
        raise ModelError(f"{path} is a pretrained trunk, not a model.", f"Train from it: --set model.init={path}.")
    if _MODEL in values and _MODEL not in kind.model_fields:
        raise ModelError(f"{path} is a whole model, not a pretrained trunk.", "See `mmcd weights list` for trunks.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        fault = f"`{where}` {words.lower()}" if where else words
        raise ModelError(f"The card {path} is not complete: {fault}.") from error


def is_trunk_card(path: Path) -> bool:
    """Return whether a TOML file says to be the card of a trunk; one that cannot be read says nothing."""
    try:
        return _TRUNK in tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def write_card(card: Card, path: Path) -> None:
    """Write a card as TOML; fields without a value are left out."""
    write_card_as(card, path)


def write_card_as(card: Config, path: Path) -> None:
    """Write a card of a model or of a trunk as TOML; fields without a value are left out."""
    path.write_text(tomli_w.dumps(card.model_dump(mode="json", exclude_none=True), multiline_strings=True))


def list_cards(folder: Path | None = None) -> list[tuple[Path, Card]]:
    """Return the models' cards of a folder (the shipped weights by default), sorted by name; trunks are left out."""
    folder = folder or weights_dir()
    return [(path, read_card(path)) for path in sorted(folder.glob("*.toml")) if not is_trunk_card(path)]


def own_cards() -> list[tuple[Path, Card]]:
    """Return the models' cards of the workspace's weights, sorted by file name: calibrated or trained here."""
    return list_cards(workspace_folder("weights"))


def known_cards() -> list[tuple[Path, Card]]:
    """Return the shipped cards and then those of the workspace."""
    return [*list_cards(), *own_cards()]


def card_reference(card: Card) -> str:
    """Return the word that names exactly this card: ``NAME``, or ``NAME@VERSION`` where the name alone means another.

    A bare name means the shipped card of that name, whatever was calibrated since, so that a command gives the same
    map tomorrow; the workspace's versions of it are asked for by version.
    """
    first = next((other for _, other in known_cards() if other.name == card.name), card)
    return card.name if first.version == card.version else f"{card.name}@{card.version}"


def find_card(name: str) -> tuple[Path, Card]:
    """Return the card called ``name``, or the one at the path ``name``.

    Args:
        name: A name, see `card_reference`; ``NAME@VERSION``; or a path that ends in ``.toml``.

    Raises:
        ModelError: There is none; the message lists those that exist.
    """
    if name.endswith(".toml"):
        return Path(name), read_card(Path(name))
    wanted, _, version = name.partition("@")
    cards = list_cards()
    if version or not any(card.name == wanted for _, card in cards):
        cards += own_cards()
    for path, card in cards:
        if card.name == wanted and version in ("", card.version):
            return path, card
    known = ", ".join(f"{card.name}@{card.version}" if version else card.name for _, card in cards) or "none"
    raise ModelError(f"There is no model called {name!r}.", f"Models here: {known}; or give the path of a card.")


def verify_weights(card_path: Path, card: Weighted) -> Path:
    """Return the path of the card's weight file after checking its hash.

    Raises:
        ModelError: The file is missing or its SHA-256 differs from the card's.
    """
    path = card_path.parent / card.weights
    if not path.is_file():
        raise ModelError(f"The weights {path} of {card.name!r} are missing.", "Restore the file or reinstall.")
    found = file_sha256(path)
    if found != card.sha256:
        raise ModelError(
            f"The weights {path} do not match their card: SHA-256 {found[:12]}, expected {card.sha256[:12]}.",
            "The file is damaged or was replaced: restore it, see `mmcd weights verify`.",
        )
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
