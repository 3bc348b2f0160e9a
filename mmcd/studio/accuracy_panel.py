"""The Accuracy page's parts: the threshold that is set, figures, charts, tables, and a calibration to keep."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from mmcd.calibration import METHODS, Method
from mmcd.cards import Card, card_reference
from mmcd.errors import MmcdError
from mmcd.evaluation import ScoreCounts, summary
from mmcd.score import threshold_value
from mmcd.services.accuracy import Measured, event_rows, threshold_rows
from mmcd.services.recalibrate import Fitted, fit_calibration, refusal, save_calibration
from mmcd.services.runs import Run
from mmcd.studio import accuracy_charts as charts
from mmcd.studio import loaders
from mmcd.studio.address import asked_threshold, keep_threshold, shown_threshold
from mmcd.studio.layers import is_dark
from mmcd.studio.metric_words import HELP, LABELS

SLIDER, TAKE, METHOD, SAVE = "accuracy-threshold", "accuracy-take", "calibration-method", "calibration-save"


def threshold_control(measured: Measured, run: Run | None) -> float:
    """Draw the threshold, which is the Damage map's; return it.

    Args:
        measured: What was counted.
        run: The run it was counted of; None of a data set.
    """
    value = asked_threshold(threshold_value(measured.threshold))
    found = [row for row in threshold_rows(measured, measured.threshold) if row["name"] != "Set now"]
    rows = {row["name"]: row for row in found if row["threshold"] is not None}

    def put(probability: float) -> None:
        st.query_params["threshold"] = shown_threshold(probability)
        keep_threshold(threshold_value(probability))
        if run is not None:  # what the Damage map's slider remembers would otherwise win over the address
            st.session_state.pop(f"threshold-{run.id}", None)

    def take() -> None:
        name = st.session_state[TAKE]
        if name is not None:
            put(rows[name]["threshold"])

    st.session_state[SLIDER] = float(keep_threshold(value))
    st.session_state[TAKE] = next((name for name, row in rows.items() if _same(row["threshold"], value)), None)
    st.slider(
        "Threshold: change from probability",
        0.0,
        1.0,
        step=0.001,
        format="%.3f",
        key=SLIDER,
        on_change=lambda: put(st.session_state[SLIDER]),
        help="The same threshold as on the Damage map. Pixels that score at least this count as changed.",
    )
    st.pills(
        "Take a threshold",
        list(rows),
        format_func=lambda name: f"{name} {shown_threshold(rows[name]['threshold'])}",
        key=TAKE,
        on_change=take,
        help="Best F1 looks at these labels, so it is too good for other scenes. Otsu, Kittler-Illingworth and the "
        "mixture of two normal distributions look at the scores alone and can be taken where there are no labels.",
    )
    return float(st.session_state[SLIDER])


def figures(measured: Measured, threshold: float) -> None:
    """Draw the figures at the threshold, and those of all thresholds."""
    found = summary(measured.total, threshold)
    columns = st.columns(len(LABELS))
    for column, (name, label) in zip(columns, LABELS.items(), strict=True):
        text = f"{found[name]:.1%}" if name == "prevalence" else f"{found[name]:.3f}"
        column.metric(label, text, help=HELP[name])
    st.caption(
        "Positive means changed. Of labelled pixels that were assessed: precision, recall, F1 and IoU at the threshold "
        "that is set; average precision, AUC and calibration error over all thresholds."
    )
    for note in measured.notes:
        st.caption(f":material/info: {note}")


def curves(measured: Measured, threshold: float, calibrated: ScoreCounts | None) -> None:
    """Draw the charts, two in a row."""
    one_class = not 0 < measured.total.prevalence < 1
    if one_class:
        st.warning(
            "Choose a scene or data set whose labels hold both.", title="The labels hold one class: there is no curve."
        )
        return
    others = {
        row["name"]: row["threshold"]
        for row in threshold_rows(measured, threshold)
        if row["threshold"] is not None and row["name"] != "Set now"
    }
    left, right = st.columns(2)
    _chart(left, "Precision and recall", charts.precision_recall(measured, threshold), "chart-pr")
    _chart(right, "ROC", charts.roc(measured, threshold), "chart-roc")
    left, right = st.columns(2)
    _chart(left, "F1 against the threshold", charts.f1_by_threshold(measured, threshold, others), "chart-f1")
    _chart(right, "Reliability", charts.reliability_diagram(measured, calibrated), "chart-reliability")


def tables(measured: Measured, threshold: float) -> None:
    """Draw the confusion matrix, the table of thresholds and that of events."""
    left, right = st.columns(2)
    matrix = charts.confusion_matrix(measured, threshold, is_dark())
    _chart(left, f"Confusion matrix at {threshold:.3f}", matrix, "chart-confusion")
    with right:
        st.subheader("Thresholds, with and without labels")
        rows = threshold_rows(measured, threshold)
        names = {
            "name": "Threshold",
            "needs": "Found by",
            "threshold": "Probability",
            **_only("f1", "precision", "recall"),
        }
        st.dataframe(_frame(rows, names), hide_index=True, alt=_said(rows), key="threshold-table")
        st.caption("Probabilities and shares, no unit. A dash: the scores fall into no two classes that way.")
    st.subheader("By event")
    rows = event_rows(measured, threshold)
    names = {"event": "Event", "pixels": "Pixels", **{name: LABELS[name] for name in LABELS}, "best_f1": "Best F1"}
    st.dataframe(_frame(rows, names), hide_index=True, alt="Accuracy of each event", key="event-table")


def calibration(measured: Measured, run: Run | None, threshold: float) -> ScoreCounts | None:
    """Draw the fit of a calibration and the button that keeps it; return the calibrated counts, None without a fit."""
    st.subheader("Calibrate the probabilities")
    why = refusal(run)
    if why:
        st.info(why, title="This run cannot calibrate its model.")
        return None
    method: Method | None = st.segmented_control(
        "Fit",
        METHODS,
        format_func=str.capitalize,
        key=METHOD,
        help="Temperature makes all scores more or less sure by one factor. Beta also shifts them and treats both "
        "ends apart: it fits more, and needs more labels. Neither changes which pixel scores above which.",
    )
    if method is None:
        st.caption(
            "Fit a calibration on these labels to see what it would change. The threshold and all figures above stay "
            "as they are until scenes are scored by the version that you keep."
        )
        return None
    try:
        fitted = fit_calibration(measured, method)
    except MmcdError as error:
        st.error(error.hint, title=error.message, icon=":material/error:")
        return None
    _effect(fitted, len(measured.events))
    if st.button("Keep it as a new version of the model", icon=":material/save:", key=SAVE):
        _save(measured, method, threshold)
    return fitted.calibration.applied(measured.total)


def _effect(fitted: Fitted, events: int) -> None:
    """Say what a calibration does to the errors, and how far that can be believed."""
    rows = [("As it is", fitted.before), ("Calibrated, on the pixels it was fitted on", fitted.after)]
    if fitted.held_out is not None:
        rows.append((f"Calibrated, each of {events} events by a fit on the others", fitted.held_out))
    frame = pd.DataFrame(
        [(name, f"{errors['ece']:.4f}", f"{errors['log_loss']:.4f}") for name, errors in rows],
        columns=["Scores", "Calibration error", "Log loss (nats)"],
    )
    st.dataframe(frame, hide_index=True, alt="Errors before and after the calibration", key="calibration-table")
    if fitted.held_out is None:
        st.caption(
            "One event: how well it serves others is not known. A scene with another share of change needs another "
            "calibration."
        )


def _save(measured: Measured, method: Method, threshold: float) -> None:
    try:
        path, card = save_calibration(measured, method, threshold)
    except MmcdError as error:
        st.error(error.hint, title=error.message, icon=":material/error:")
        return
    _forget_cards()
    name = card_reference(card)
    st.success(
        f"Choose **{name}** on the Damage map, or `mmcd infer predict --model {name}`. Its threshold "
        f"{card.decision.threshold:.3f} cuts where {threshold:.3f} cut before. {_old(card)} `{path}`",
        title="Kept as a new version.",
    )


def _old(card: Card) -> str:
    return f"{card.name} {card.training['calibration']['from_version']} is as it was."


def _forget_cards() -> None:
    for cached in (loaders.cards, loaders.models):
        cached.clear()


def _chart(place: Any, title: str, chart: charts.Chart, key: str) -> None:
    place.subheader(title)
    place.plotly_chart(chart.figure, key=key, alt=chart.alt, config={"displayModeBar": False})


def _frame(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> pd.DataFrame:
    """Return a table of text, so that every cell says what it should to whoever reads it."""
    return pd.DataFrame([[_cell(key, row.get(key)) for key in names] for row in rows], columns=list(names.values()))


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:  # NaN is not itself
        return "–"
    if isinstance(value, str):
        return value
    if name == "pixels":
        return f"{value:,}"
    if name == "threshold":
        return shown_threshold(value)
    return f"{value:.1%}" if name == "prevalence" else f"{value:.3f}"


def _only(*names: str) -> dict[str, str]:
    return {name: LABELS[name] for name in names}


def _said(rows: Sequence[dict[str, Any]]) -> str:
    parts = [f"{row['name']} {shown_threshold(row['threshold'])}" for row in rows if row["threshold"] is not None]
    return "Thresholds: " + ", ".join(parts)


def _same(probability: float, value: int) -> bool:
    return threshold_value(probability) == value
