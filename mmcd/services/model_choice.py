"""Which model serves a pair of images, why, and what speaks against it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcd.cards import Branch, Card, Modality, find_card, list_cards
from mmcd.errors import InputError, ModelError
from mmcd.geo.catalog import Scene
from mmcd.geo.raster import RasterSource
from mmcd.geo.sensors import detect_modality, select_bands

_MODALITY_PIXELS = 250_000

_OF_SIMULATION = tuple(re.compile(word, re.IGNORECASE) for word in (r"\b(learn|train)", r"\bsimulat"))
"""Words of the sentence in which a card says what it learned from; others may name simulated test scenes."""


@dataclass(frozen=True)
class ImageFacts:
    """What decides whether a model takes an image.

    Attributes:
        path: The file.
        modality: Kind of sensor; None when it cannot be told.
        gsd: Ground sample distance in metres; None when unknown.
    """

    path: Path
    modality: Modality | None
    gsd: float | None


@dataclass(frozen=True)
class Fit:
    """How a model suits a pair.

    Attributes:
        refusals: Reasons why it cannot take the images at all: missing bands, or radar for a model of two optical
            images.
        mismatches: Reasons why its answers are not to be trusted: another GSD, sensor or kind of event.
        notes: What is unknown or assumed.
        distance: Smaller is nearer; compares models that all have mismatches.
    """

    refusals: tuple[str, ...]
    mismatches: tuple[str, ...]
    notes: tuple[str, ...]
    distance: float

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that speaks against the model, for a page that refuses it."""
        return self.refusals + self.mismatches


@dataclass(frozen=True)
class Choice:
    """The model that is used.

    Attributes:
        card_path: Path of its card.
        card: Its card.
        reason: Why it was taken, one sentence.
        warnings: What speaks against it.
        substitute: Whether other bands stand in for those that the model asks for.
    """

    card_path: Path
    card: Card
    reason: str
    warnings: tuple[str, ...]
    substitute: bool = False


def choose_model(pre: Path, post: Path, name: str | None = None, scene: Scene | None = None) -> Choice:
    """Return the named model, or the nearest one by bands, GSD, sensor and kind of event.

    Two optical images get a model of two optical images where one has these bands and this pixel size, else the nearest
    one with a warning.

    Raises:
        InputError: An image cannot be read.
        ModelError: The named model lacks its bands, or no model takes these images.
    """
    facts = image_facts(pre), image_facts(post)
    event_type = scene.event_type if scene else None
    if name is not None:
        path, card = find_card(name)
        fit = model_fit(card, *facts, event_type)
        if fit.refusals:
            raise ModelError(f"{card.name} does not fit: {' '.join(fit.refusals)}", "Choose another --model.")
        return Choice(path, card, "it was asked for", fit.mismatches + fit.notes)
    candidates = [(path, card, model_fit(card, *facts, event_type)) for path, card in list_cards()]
    usable = [candidate for candidate in candidates if not candidate[2].refusals]
    substitute = not usable and all(image.modality == "optical" for image in facts)
    if substitute:
        usable = candidates
    if not usable:
        why = " ".join(reason for _, _, fit in candidates for reason in fit.refusals)
        raise ModelError(f"No model takes these images. {why}".strip(), "See `mmcd weights list` for what they need.")
    path, card, fit = min(usable, key=lambda candidate: candidate[2].distance)
    suits = "is the nearest of" if fit.reasons else "fits by bands, GSD and sensor, of"
    reason = f"{card.name} {suits} {len(candidates)} model{'s' if len(candidates) > 1 else ''}"
    return Choice(path, card, reason, fit.mismatches + fit.notes, substitute)


def image_facts(path: Path) -> ImageFacts:
    """Return what decides which model takes an image.

    Raises:
        InputError: It cannot be read.
    """
    with RasterSource(path) as source:
        return ImageFacts(path, detect_modality(source, source.read_decimated(_MODALITY_PIXELS)), source.grid.gsd)


def model_fit(card: Card, pre: ImageFacts, post: ImageFacts, event_type: str | None = None) -> Fit:
    """Compare a card with a pair of images."""
    refusals: list[str] = []
    mismatches: list[str] = []
    notes: list[str] = []
    for image, branch, when in ((pre, card.pre, "before"), (post, card.post, "after")):
        missing = _missing_bands(image, branch)
        if missing:
            refusals.append(missing)
        if image.modality is not None and image.modality != branch.modality:
            words = f"The image {when} looks {_named(image.modality)}; {card.name} wants {_named(branch.modality)}."
            # To a model of two optical images radar says nothing; the others are the best there may be for a pair.
            (refusals if card.compares_optical else mismatches).append(words)
    gsd = post.gsd or pre.gsd
    if gsd is None:
        notes.append(f"The pixel size is unknown; {card.name} was trained at {card.gsd.nominal:g} m.")
    elif not card.gsd.min <= gsd <= card.gsd.max:
        span = f"{card.gsd.min:g}–{card.gsd.max:g} m"
        mismatches.append(f"The pixel size is {gsd:.3g} m; {card.name} is for {span}.")
    if event_type and card.event_types and event_type not in (*card.event_types, "unknown"):
        mismatches.append(f"The event is of type {event_type}; {card.name} finds {', '.join(card.event_types)}.")
    octaves = abs(math.log2(gsd / card.gsd.nominal)) if gsd else 0.0
    return Fit(tuple(refusals), tuple(mismatches), tuple(notes), 4 * len(mismatches) + octaves)


def simulation_warning(card: Card) -> str | None:
    """Return the card's own sentence on having learned from simulated images only; None when it saw real ones.

    The fact is the card's ``simulated``; cards of before that field tell it by the source of their samples.
    """
    if not card.simulated and card.training.get("data", {}).get("source") != "simulated":
        return None
    text = " ".join(card.description.split())
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    said = next((sentence for sentence in sentences if all(word.search(sentence) for word in _OF_SIMULATION)), None)
    return said or f"{card.name} learned from simulated scenes only."


def notice_facts(card: Card | None) -> dict[str, str]:
    """Return what a manifest's facts of a model hold beside its name, where it never saw a real image."""
    said = simulation_warning(card) if card else None
    return {"notice": said} if said else {}


def notice_of_run(model: Mapping[str, Any], cards: Iterable[Card] | None = None) -> str | None:
    """Return what is to be said beside the results of a run whose model never saw a real image; None for others.

    Args:
        model: What the run's manifest says of its model. Where it holds no notice, as in runs of before there was one,
            the card of that name tells.
        cards: Cards to look in; the shipped ones are read if left out.
    """
    if "notice" in model:
        return str(model["notice"])
    known = (card for _, card in list_cards()) if cards is None else cards
    return next((simulation_warning(card) for card in known if card.name == model["name"]), None)


def _missing_bands(image: ImageFacts, branch: Branch) -> str | None:
    with RasterSource(image.path) as source:
        try:
            select_bands(source, branch.bands)
        except InputError as error:
            return error.message
    return None


def _named(modality: Modality) -> str:
    return "like radar" if modality == "sar" else "optical"
