"""The cross-event table of BRIGHT: one model an event, each measured on the event that it did not, or hardly, see."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmcd.data.bright import event_of
from mmcd.data.bright_choice import lists_folder
from mmcd.data.bright_splits import read_split
from mmcd.errors import ModelError
from mmcd.progress import Progress
from mmcd.services.evaluate_bright import evaluate_bright
from mmcd.services.evaluate_request import EVENT_PLACE, EvaluateRequest
from mmcd.services.published_bright import published_beside

FIGURES = ("oa", "miou", "miou_absent_zero", "f1_loc", "f1_clf")


def evaluate_cross_events(request: EvaluateRequest, progress: Progress) -> dict[str, Any]:
    """Return the figures of every event that there is a card for, and their mean, beside the published table.

    Args:
        request: With ``hold_out`` all; the event stands in the path of its card.
        progress: Told of the tiles of one event after the other; may raise to stop.

    Raises:
        ModelError: There is no card at all, or one is damaged.
        DataError: An event has no labelled tile on disk, see `evaluate_bright`.
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
    results = {
        event: evaluate_bright(request.model_copy(update={"model": card, "hold_out": event}), progress)
        for event, card in there.items()
    }
    without = [f"No card for {event}: {card} is missing." for event, card in cards.items() if event not in there]
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


def _table(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one row an event and their mean; None for figures that no event has."""
    rows = {
        event: {"tiles": result["tiles"]} | {name: result.get(name) for name in FIGURES}
        for event, result in results.items()
    }
    values = {name: [row[name] for row in rows.values() if row[name] is not None] for name in FIGURES}
    mean = {name: float(np.mean(known)) if known else None for name, known in values.items()}
    return {**rows, "mean": {"tiles": sum(row["tiles"] for row in rows.values()), **mean}}
