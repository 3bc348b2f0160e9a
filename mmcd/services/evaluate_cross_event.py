"""The cross-event table of BRIGHT: one model an event, each measured on the event that it did not, or hardly, see."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmcd.data.bright import event_of
from mmcd.data.bright_choice import lists_folder
from mmcd.data.bright_splits import read_split
from mmcd.errors import DataError, ModelError
from mmcd.progress import Progress
from mmcd.services.evaluate_bright import chosen_tiles, evaluate_bright
from mmcd.services.evaluate_request import EVENT_PLACE, EvaluateRequest
from mmcd.services.published_bright import published_beside

FIGURES = ("oa", "miou", "miou_absent_zero", "f1_loc", "f1_clf")
BINARY = ("oa", "f1", "iou", "kappa")


def evaluate_cross_events(request: EvaluateRequest, progress: Progress) -> dict[str, Any]:
    """Return the figures of every event that there is a card for, and their mean, beside the published table.

    Args:
        request: With ``hold_out`` all; the event stands in the path of its card.
        progress: Told of the tiles of one event after the other; may raise to stop.

    Raises:
        ModelError: There is no card at all, or one is damaged.
        DataError: No event with a card has a labelled tile on disk, or a tile is damaged, see `evaluate_bright`.
    """
    split = read_split(lists_folder(request.root, request.lists), "standard_ML")
    events = sorted({event_of(image_id) for image_id in split.part_of()})
    cards = {event: request.model.replace(EVENT_PLACE, event) for event in events}
    there = {event: card for event, card in cards.items() if Path(card).is_file()}
    if not there:
        raise ModelError(
            f"There is no card {next(iter(cards.values()))}, nor one of another event.",
            f"Write the path of the cards with {EVENT_PLACE} for the event: {', '.join(events)}.",
        )
    asked, without = _asked(request, there)
    results = {event: evaluate_bright(one, progress) for event, one in asked.items()}
    without += [f"No card for {event}: {card} is missing." for event, card in cards.items() if event not in there]
    said = [f"{event}: {line}" for event, result in results.items() for line in result["warnings"]]
    return {
        "model": request.model,
        "dataset": request.dataset,
        "hold_out": request.hold_out,
        "shots": int(request.one_shot),
        "tiles": sum(result["tiles"] for result in results.values()),
        "cross_event": _table(results),
        "results": results,
        "published": published_beside(request, any(result["confusion"] for result in results.values())),
        "warnings": [*without, *said],
        "unit": "labelled pixels of an event pooled; mean: of the events",
    }


def _asked(request: EvaluateRequest, cards: Mapping[str, str]) -> tuple[dict[str, EvaluateRequest], list[str]]:
    """Return what is asked of each card whose event has tiles, and why the others are left out.

    Looked up before the first tile is scored: of three events the optical images cannot be downloaded.
    """
    asked, without = {}, []
    lost: DataError | None = None
    for event, card in cards.items():
        one = request.model_copy(update={"model": card, "hold_out": event})
        try:
            chosen_tiles(one)
        except DataError as error:
            lost = error
            without.append(f"{event} is left out: {error}")
        else:
            asked[event] = one
    if lost is not None and not asked:
        raise lost
    return asked, without


def _table(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one row an event and their mean over the events that have a figure; None for figures that none has.

    Models that map no grades have the figures of the binary protocol alone.
    """
    graded = any(result["confusion"] for result in results.values())
    names = FIGURES if graded else BINARY
    rows = {
        event: {"tiles": result["tiles"]} | {name: (result if graded else result["binary"]).get(name) for name in names}
        for event, result in results.items()
    }
    values = {name: [row[name] for row in rows.values() if row[name] is not None] for name in names}
    known = {name: [value for value in found if not math.isnan(value)] for name, found in values.items()}
    mean = {name: float(np.mean(found)) if found else None for name, found in known.items()}
    return {**rows, "mean": {"tiles": sum(row["tiles"] for row in rows.values()), **mean}}
