"""Fit a calibration on labelled scores and keep it as a new version of the card that made them.

The card that was there is never written: the new one lies in the workspace's weights beside a copy of the weight file,
and is found as ``NAME@VERSION`` (`mmcd.cards.find_card`), while the bare name goes on meaning the shipped card.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmcd.calibration import Method, ScoreCalibration, fit_scores, log_loss
from mmcd.cards import Card, Decision, find_card, known_cards, read_card, verify_weights, write_card
from mmcd.errors import DataError, ModelError
from mmcd.evaluation import ScoreCounts, expected_calibration_error, metrics_at
from mmcd.paths import workspace_folder
from mmcd.services.accuracy import Counts, Measured, card_of
from mmcd.services.own_weights import copy_weights, write_new
from mmcd.services.runs import Run


@dataclass(frozen=True)
class Fitted:
    """A calibration and what it does.

    Attributes:
        calibration: What maps stored probabilities to new ones.
        before: Expected calibration error and mean log loss of the scores as they are.
        after: The same on the pixels that it was fitted on.
        held_out: The same over events of which each is calibrated by a fit on the others; None of a single event.
    """

    calibration: ScoreCalibration
    before: dict[str, float]
    after: dict[str, float]
    held_out: dict[str, float] | None


def fit_calibration(measured: Measured, method: Method) -> Fitted:
    """Fit a calibration on all labelled pixels.

    Raises:
        DataError: Only one class is there, or the scores fall where change grows.
    """
    total = measured.total
    calibration = fit_scores(total, method)
    held_out = _held_out(measured.events, method)
    return Fitted(
        calibration,
        _errors(total),
        _errors(calibration.applied(total)),
        None if held_out is None else _errors(held_out),
    )


def refusal(run: Run | None) -> str | None:
    """Return why a run's scores say nothing of the card that made them; None where they do.

    Args:
        run: The run; None of a data set, which is always scored by the card as it is.
    """
    if run is not None and run.manifest.get("adapt"):
        return "This run adapted the model to the scene, and its scores are not those of the card."
    return None


def save_calibration(measured: Measured, method: Method, threshold: float) -> tuple[Path, Card]:
    """Write the fitted calibration as a new version of the card; return where it is, and the card.

    The new threshold cuts where the given one cut before. What the old card measured is not carried over: of its
    figures only those that depend on the order of the scores still hold.

    Args:
        measured: What it is fitted on; names the card.
        method: How it is fitted.
        threshold: The threshold that is set, a probability as the card stated it before.

    Raises:
        DataError: It cannot be fitted on these labels.
        ModelError: The card or its weights are missing, or it cannot carry such a calibration.
        StorageError: The workspace cannot be written.
    """
    path, card = find_card(card_of(measured))
    weights = verify_weights(path, card)
    fitted = fit_calibration(measured, method)
    changes = {
        "decision": _decided(card, fitted.calibration, threshold, measured.total.prevalence),
        "description": f"{card.description.rstrip()} {_words(card, measured, method)}",
        "training": {**card.training, "calibration": _facts(card, measured, fitted)},
        "metrics": (_figures(measured, fitted, threshold),),
        "weights": copy_weights(weights, card).name,
    }
    return _write_new(card.model_copy(update=changes), method)


def _held_out(events: Counts, method: Method) -> ScoreCounts | None:
    """Return the counts of all events, each calibrated by a fit on the others; None where that cannot be done."""
    if len(events) < 2:
        return None
    total = ScoreCounts.none()
    for name, counts in events.items():
        others = sum((other for key, other in events.items() if key != name), ScoreCounts.none())
        try:
            total += fit_scores(others, method).applied(counts)
        except DataError:
            return None
    return total


def _errors(counts: ScoreCounts) -> dict[str, float]:
    return {"ece": expected_calibration_error(counts), "log_loss": log_loss(counts)}


def _decided(card: Card, calibration: ScoreCalibration, threshold: float, share: float) -> Decision:
    """Return the card's decision with a calibration after it."""
    old = card.decision
    cut = min(max(float(calibration(threshold)), 0.0), 1.0)  # type: ignore[arg-type]
    common = {"threshold": round(cut, 4), "prevalence": round(share, 6)}
    if calibration.method == "temperature":
        slope = calibration.a
        beta = None if old.beta is None else tuple(slope * value for value in old.beta)
        scaled = {} if beta else {"slope": old.slope * slope, "intercept": old.intercept * slope}
        return old.model_copy(update={**common, **scaled, "beta": beta})
    if old.beta is not None:
        raise ModelError(
            f"{card.name} {card.version} carries a beta calibration already.",
            "Fit beta on scores of the version before it, or fit a temperature.",
        )
    if "patch" in (card.pre.scaling, card.post.scaling):
        raise ModelError(f"{card.name} scores patches, which take no beta calibration.", "Fit a temperature.")
    return old.model_copy(update={**common, "beta": (calibration.a, calibration.b, calibration.c)})


def _words(card: Card, measured: Measured, method: Method) -> str:
    return (
        f"Version {card.version} with its probabilities fitted again ({method}) on {measured.title}; figures of other "
        "versions hold for the order of its scores only."
    )


def _facts(card: Card, measured: Measured, fitted: Fitted) -> dict[str, Any]:
    calibration, total = fitted.calibration, measured.total
    facts: dict[str, Any] = {
        "from_version": card.version,
        "method": calibration.method,
        "coefficients": [calibration.a, calibration.b, calibration.c],
        "fitted_on": measured.title,
        "pixels": int(total.changed[1:].sum() + total.unchanged[1:].sum()),
        "events": len(measured.events),
    }
    for name, errors in {"before": fitted.before, "after": fitted.after, "held_out": fitted.held_out}.items():
        if errors is not None:
            facts[name] = {key: round(value, 5) for key, value in errors.items()}
    return facts


def _figures(measured: Measured, fitted: Fitted, threshold: float) -> dict[str, Any]:
    """Return the row of figures that the new card shows, and says to be of the very pixels it was fitted on."""
    figures = metrics_at(measured.total, threshold)
    rows = {name: round(value, 4) for name, value in figures.items() if math.isfinite(value)}
    return {
        "data": measured.title,
        "split": "the pixels that the calibration was fitted on",
        **rows,
        "ece": round(fitted.after["ece"], 4),
    }


def _write_new(card: Card, method: Method) -> tuple[Path, Card]:
    """Write a card under the first version that no card of its name has; two writers never take the same one."""
    base = card.version.partition("-calibrated-")[0]
    taken = {other.version for _, other in known_cards() if other.name == card.name}
    folder, number = workspace_folder("weights"), 1
    while True:
        version = f"{base}-calibrated-{method}-{number}"
        path = folder / f"{card.name}-{version}.toml"
        number += 1
        if version in taken or path.exists():
            continue
        fresh = card.model_copy(update={"version": version})
        if write_new(path, partial(write_card, fresh)):
            return path, read_card(path)
