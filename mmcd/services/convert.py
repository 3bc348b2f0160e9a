"""Bring a published checkpoint of pretraining into this project: its trunk as safetensors, with a card."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mmcd.cards import file_sha256
from mmcd.config import Config
from mmcd.data.seasonal_files import RGB
from mmcd.errors import ModelError, UsageError
from mmcd.geo.sensors import POLARISATIONS, band_names, standard_name
from mmcd.progress import Progress, silent
from mmcd.trunk_cards import METHODS, Method, Normalisation, TrunkCard

if TYPE_CHECKING:
    from mmcd.models.published_trunks import PublishedTrunk

_EIGHT_BITS = (0.0, 255.0)
_PASTIS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")

_SECO = {
    "dcf336be31f6c6b0e77dcb6cc958fca8": "seco_resnet18_100k",
    "53d5c41d0f479bdfd31d6746ad4126db": "seco_resnet18_1m",
    "9672c303f6334ef816494c13b9d05753": "seco_resnet50_100k",
    "7b09c54aed33c0c988b425c54f4ef948": "seco_resnet50_1m",
}
"""MD5 of SeCo's files as Zenodo 4728033 publishes them (reference system 3)."""

_LICENCES = {
    "caco": "CACo: code MIT, project page CC BY-NC 4.0",
    "seco": "SeCo: Apache-2.0",
    "saco": "SACo: MIT, (c) 2023 L. Stival",
    "torchgeo": "as TorchGeo's page of these weights says",
    "torchvision": "torchvision: BSD-3-Clause; ImageNet's terms of access",
}
_METHOD = re.compile(r"(?<![a-z])(moco_tp|moco|seco|teco|caco|saco)(?![a-z])")
_BY_NAME: dict[str, Method] = {method: method for method in METHODS}
_BY_LAYOUT: dict[str, Method] = {
    "caco": "caco",
    "seco": "seco",
    "saco": "saco",
    "torchgeo": "other",
    "torchvision": "imagenet",
}


class ConvertRequest(Config):
    """What to convert.

    Attributes:
        file: Checkpoint as it was published.
        out: File of weights to write; the card lies beside it.
        format: Its layout, see `mmcd.models.published_trunks`; ``auto`` finds it out.
        name: Name of the trunk; that of ``out`` when left out.
        bands: Bands of its first convolution in channel order; what the layout was published for when left out.
    """

    file: Path
    out: Path
    format: Literal["auto", "caco", "seco", "saco", "torchgeo", "torchvision"] = "auto"
    name: str | None = Field(default=None, pattern=r"^[\w.+-]+$")
    bands: tuple[str, ...] | None = Field(default=None, min_length=1)


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    Attributes:
        weights: File of weights.
        path: Its card.
        card: What the card says.
        layout: Layout of the checkpoint.
        tensors: Tensors of the trunk, all of which were found.
        left_out: Tensors beside it, by the part they belong to.
        notes: What was assumed or recognised, for people.
    """

    weights: Path
    path: Path
    card: TrunkCard
    layout: str
    tensors: int
    left_out: dict[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "weights": str(self.weights),
            "path": str(self.path),
            "layout": self.layout,
            "tensors": self.tensors,
            "left_out": self.left_out,
            "notes": list(self.notes),
            "card": self.card.model_dump(mode="json"),
        }


def convert_weights(request: ConvertRequest, progress: Progress = silent) -> Converted:
    """Convert a checkpoint; nothing is written unless the whole trunk was found.

    Raises:
        ModelError: The file is damaged, asks for code, or holds no whole trunk.
        StorageError: The files cannot be written.
        UsageError: ``out`` exists, or the bands are not as many as the first convolution takes.
    """
    stem = request.out.with_suffix("") if request.out.suffix == ".safetensors" else request.out
    weights, card_path = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".toml"))
    for path in (weights, card_path):
        if path.exists():
            raise UsageError(f"{path} exists.", "Give another --out, or remove the two files first.")
    if not request.file.is_file():
        raise ModelError(f"{request.file} is not a file.", "Give the path of a checkpoint that was fetched.")
    from mmcd.models.published_trunks import read_published
    from mmcd.models.trunk_weights import save_trunk

    progress("read", 0, 2)
    found = read_published(request.file, None if request.format == "auto" else request.format)
    bands, assumed = _bands(request, found)
    known, recognised = _recognised(request.file)
    method = _method(known or request.file.stem, found)
    card = _card(request, request.name or stem.name, found, method, bands, known)
    progress("write", 1, 2)
    card = save_trunk(found.weights, card, weights)
    notes = tuple(note for note in (recognised, assumed, *_warnings(found, method)) if note)
    return Converted(weights, card_path, card, found.layout, len(found.weights), found.left_out, notes)


def convert_summary(converted: Converted) -> dict[str, Any]:
    """Return the few lines a person wants to see."""
    card = converted.card
    left = ", ".join(f"{count} of {part}" for part, count in sorted(converted.left_out.items())) or "nothing"
    return {
        "trunk": f"{card.trunk}, {card.method}, for {' '.join(card.bands)}",
        "matched": f"{converted.tensors} of {converted.tensors} tensors ({converted.layout} layout)",
        "left out": left,
        "weights": str(converted.weights),
        "card": str(converted.path),
        "prepare images": card.normalisation.words,
    }


def _bands(request: ConvertRequest, found: "PublishedTrunk") -> tuple[tuple[str, ...], str]:
    """Return the bands of the first convolution, and in words what was assumed.

    Raises:
        UsageError: They are not as many as it takes, or nobody said what so many are.
    """
    if request.bands is not None:
        if len(request.bands) != found.bands:
            raise UsageError(
                f"--bands names {len(request.bands)} bands, the first convolution of {request.file.name} takes "
                f"{found.bands}.",
                "Name them in channel order.",
            )
        return tuple(standard_name(band) or band for band in request.bands), ""
    usual = _PASTIS if found.bands == len(_PASTIS) else band_names([None] * found.bands)
    names = tuple(name for name in usual if name is not None)
    if not names:
        raise UsageError(
            f"The first convolution of {request.file.name} takes {found.bands} bands, which have no usual names.",
            "Name them in channel order with --bands.",
        )
    return names, f"Bands are taken for {' '.join(names)}; --bands names others."


def _recognised(path: Path) -> tuple[str, str]:
    """Return the name of a file that is known by its hash, and what to say of it; both empty for any other."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 in _SECO:
        return _SECO[md5], f"MD5 {md5[:8]}... is that of {_SECO[md5]}.ckpt as published with SeCo (Zenodo 4728033)."
    if path.stem in _SECO.values():
        return "", f"The file is called as one of SeCo's, but MD5 {md5[:8]}... is not that of the published one."
    return "", ""


def _method(name: str, found: "PublishedTrunk") -> Method:
    """Return how a trunk was pretrained: by the file's name, by its settings, else by its layout."""
    for text in (name, str(found.facts.get("data_mode", ""))):
        if word := _METHOD.search(text.lower().replace("-", "_")):
            return _BY_NAME[word[1]]
    return _BY_LAYOUT[found.layout]


def _normalisation(found: "PublishedTrunk", method: Method, bands: tuple[str, ...]) -> Normalisation:
    """Return how the publishers prepared images before pretraining."""
    from mmcd.data.seasonal_views import IMAGENET_MEAN, IMAGENET_STD, QUANTILES

    seasonal = found.layout in ("caco", "seco") or (found.layout == "torchgeo" and method == "seco")
    if seasonal and set(bands) <= set(QUANTILES):
        lower, upper = zip(*(QUANTILES[band] for band in bands), strict=True)
        colours = [RGB.index(band) for band in bands]
        return Normalisation(
            lower=lower,
            upper=upper,
            mean=tuple(IMAGENET_MEAN[place] for place in colours),
            std=tuple(IMAGENET_STD[place] for place in colours),
            words="Reflectance x 255, stretched by the quantiles of SeCo and CACo (2 and 98 per cent of each band), "
            "less ImageNet's mean through its deviation, as in pretraining. Their EuroSAT protocol divides by 255 "
            "only, OSCD stretches by its own quantiles, BigEarthNet by mean and two deviations.",
        )
    if method == "imagenet" and len(bands) == len(RGB):
        return Normalisation(
            lower=(0.0,) * 3,
            upper=(255.0,) * 3,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            words="8-bit red, green and blue / 255, less ImageNet's mean through its deviation.",
        )
    low, high = _EIGHT_BITS
    return Normalisation(
        lower=(low,) * len(bands),
        upper=(high,) * len(bands),
        mean=(0.0,) * len(bands),
        std=(1.0,) * len(bands),
        words="Reflectance (10000 is 1) or 8-bit values brought to [0, 1], without mean and deviation; check it with "
        "the publisher of the weights.",
    )


def _card(
    request: ConvertRequest, name: str, found: "PublishedTrunk", method: Method, bands: tuple[str, ...], known: str
) -> TrunkCard:
    facts = {key: value for key, value in found.facts.items() if key not in ("name", "path")}
    training = {
        "source": known or request.file.name,
        "source_sha256": file_sha256(request.file),
        "layout": found.layout,
        "left_out": found.left_out,
        **({"settings": facts} if facts else {}),
    }
    return TrunkCard(
        name=name,
        version="1.0",
        title=f"{found.trunk}, pretrained by {method}, from {known or request.file.name}",
        description="Converted from a published checkpoint; its trunk is whole, its heads and queues were left out.",
        trunk=found.trunk,
        method=method,
        modality="sar" if set(bands) <= set(POLARISATIONS) else "optical",
        bands=bands,
        normalisation=_normalisation(found, method, bands),
        training=training,
        licence={"weights": _LICENCES[found.layout]},
    )


def _warnings(found: "PublishedTrunk", method: Method) -> list[str]:
    """Return what users of these weights have stumbled over."""
    if found.layout == "saco":
        return ["The network has seen every group of three bands: B4 B3 B2 are its natural colours."]
    if method == "other":
        return ["Nothing in the file says how it was pretrained: check the card's method and normalisation."]
    return []
