"""Cards of pretrained trunks: the TOML file beside a weight file that other models and downstream tasks start from.

A trunk is no model: it gives features, not change. Its card says how it was pretrained, which band each channel of the
first convolution belongs to and how values are prepared. Trunks lie where models lie, in the shipped ``weights`` and in
the workspace's, and are told apart by what their cards hold. Nothing here needs torch.
"""

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mmcd.cards import Modality, is_trunk_card, read_card_as, write_card_as
from mmcd.config import Config
from mmcd.errors import ModelError
from mmcd.paths import shipped, weights_dir, workspace, workspace_folder

FeatureTrunk = Literal["resnet18", "resnet34", "resnet50", "swin_t", "convnext_tiny"]
"""Bodies that features are taken from, see `mmcd.models.trunks`."""

Method = Literal["moco", "moco_tp", "seco", "teco", "caco", "saco", "saco_plus", "imagenet", "random", "other"]
METHODS: tuple[Method, ...] = get_args(Method)

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin")
"""Endings of files that `mmcd weights convert` reads."""

_FILES = (".toml", ".safetensors")


class Normalisation(Config):
    """How the values of an image become what the trunk was pretrained on, band by band.

    ``(clip((value - lower) / (upper - lower), 0, 1) - mean) / std``.

    Attributes:
        lower: Values of the 8-bit or stretched image that become 0.
        upper: Values that become 1.
        mean: Mean that is taken off the values in [0, 1].
        std: Standard deviation that they are divided by.
        words: How people should prepare images.
    """

    lower: tuple[float, ...] = Field(min_length=1)
    upper: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: str

    @model_validator(mode="after")
    def _for_the_same_bands(self) -> Self:
        if len({len(self.lower), len(self.upper), len(self.mean), len(self.std)}) > 1:
            raise ValueError("lower, upper, mean and std have a value for each band")
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)) or min(self.std) <= 0:
            raise ValueError("lower must lie below upper, and std above 0")
        return self


class TrunkCard(Config):
    """Everything that must be known of a pretrained trunk without opening its weights.

    Attributes:
        name: Name, as given to ``model.init`` and ``--model``.
        version: Version of the weights.
        title: One line for people.
        description: What it learned from and what it is good for.
        trunk: Which body.
        method: How it was pretrained.
        modality: Kind of sensor.
        bands: Standard band names in the channel order of the first convolution.
        normalisation: How values are prepared.
        weights: File name of the safetensors file beside the card; set when it is saved.
        sha256: Hash of that file; set when it is saved.
        training: Data, schedule and seeds, for people.
        metrics: Measured results, one table an evaluation.
        licence: Rights of the weights and of their training data.
    """

    name: str = Field(pattern=r"^[\w.+-]+$")
    version: str
    title: str
    description: str
    trunk: FeatureTrunk
    method: Method
    modality: Modality = "optical"
    bands: tuple[str, ...] = Field(min_length=1)
    normalisation: Normalisation
    weights: str = ""
    sha256: str = ""
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()
    licence: dict[str, str]

    @model_validator(mode="after")
    def _bands_are_normalised(self) -> Self:
        if len(self.bands) != len(self.normalisation.lower):
            raise ValueError(f"normalisation has {len(self.normalisation.lower)} bands, the card {len(self.bands)}")
        return self


def read_trunk_card(path: Path) -> TrunkCard:
    """Read a trunk's card.

    Raises:
        ModelError: The file is missing, not TOML, lacks a field or is a model's card.
    """
    return read_card_as(TrunkCard, path)


def write_trunk_card(card: TrunkCard, path: Path) -> None:
    """Write a card as TOML."""
    write_card_as(card, path)


def list_trunks() -> list[tuple[Path, TrunkCard]]:
    """Return the cards of the shipped trunks, then of the workspace's, each sorted by file name.

    Raises:
        ModelError: A card is damaged.
        StorageError: The workspace cannot be used.
    """
    folders = (weights_dir(), workspace_folder("weights"))
    paths = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    return [(path, read_trunk_card(path)) for path in paths if is_trunk_card(path)]


def find_trunk(name_or_path: str | Path) -> Path:
    """Return the card of a trunk.

    Args:
        name_or_path: Name of a shipped trunk or of one in the workspace's ``weights``; or the path of a card or of its
            weights. A relative path, such as ``weights/seco.toml``, is looked for here, then with mmcd, then in the
            workspace.

    Raises:
        ModelError: There is none; the message lists those that exist, or says that a checkpoint must be converted.
    """
    asked = Path(name_or_path).expanduser()
    if asked.suffix in _FILES:
        card = asked.with_suffix(".toml")
        places = (card, shipped(str(card)), workspace() / card)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ModelError(f"There is no trunk at {card}.", _known())
        return found
    if asked.suffix in CHECKPOINTS:
        hint = f"Convert it first: mmcd weights convert {asked} --out {asked.stem}.safetensors."
        raise ModelError(f"{asked} is a checkpoint without a card.", hint)
    for path, trunk in list_trunks():
        if trunk.name == str(name_or_path):
            return path
    raise ModelError(f"There is no trunk called {str(name_or_path)!r}.", _known())


def _known() -> str:
    names = ", ".join(card.name for _, card in list_trunks()) or "none"
    return f"Trunks here: {names}; or give the path of a card, see `mmcd weights convert --help`."
