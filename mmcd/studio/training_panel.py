"""Trainings side by side: which there are, their curves in one chart a metric, their figures and what differs."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape

import pandas as pd
import streamlit as st

from mmcd.services.training_runs import TASK_WORDS, RunState, TrainingRun, differing
from mmcd.studio import loaders
from mmcd.studio.messages import duration, errors_shown, utc
from mmcd.studio.metric_words import training_help
from mmcd.studio.selection import mark_rows
from mmcd.studio.training_charts import AXES, RUNS_AT_MOST, Axis, look_of, metric_chart
from mmcd.studio.training_source import WATCH, choose_runs, chosen_runs, curves, trainings

TABLE, METRICS, AXIS, LOG, SMOOTH = (
    f"training-{name}" for name in ("table", "metrics", "axis", "log", "smoothing")
)  # keys of the widgets
FIRST_RUNS = 3
"""Runs that are compared while none was chosen, the newest ones."""

STATES: dict[RunState, str] = {
    "running": "▶ running",
    "waiting": "… waiting",
    "finished": "✓ finished",
    "failed": "✕ failed",
    "stopped": "– stopped",
}
"""States with a sign, the cue that needs no colour."""

WIDTHS = {"State": 100, "Run": 260, "Task": 190, "Figure": 170, "Data": 120, "Started (UTC)": 130, "Took": 90}
_STROKES = {
    "solid": ("━━", "━━"),
    "dash": ("━ ", " ━"),
    "dot": ("┅", "┅"),
    "dashdot": ("━ ·", "· ━"),
    "longdash": ("━━ ", " ━━"),
    "longdashdot": ("━━ ·", "· ━━"),
}
_SIGNS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "star": "★"}
"""Dashes and marks of the charts as text, for the legend that stands above all of them."""

_NEVER = ("epoch",)
_DRAWN_FIRST = ("train/loss", "val/loss", "val/bce")
_CHARTS_AT_FIRST = 4


def choose_compared() -> list[TrainingRun]:
    """Draw the table of runs; return those that are compared."""
    known = trainings()
    names = list(known)
    if "training" not in st.query_params:
        with_figures = [name for name in names if known[name].figures]
        choose_runs((with_figures or names)[:FIRST_RUNS])
    chosen = chosen_runs(known)
    mark_rows(TABLE, [names.index(name) for name in chosen])
    st.dataframe(
        [_row(run) for run in known.values()],
        hide_index=True,
        column_config={name: {"width": width} for name, width in WIDTHS.items()},
        height=min(38 + 35 * len(names), 300),
        on_select=partial(_take, names),
        selection_mode="multi-row",
        key=TABLE,
        alt="Table of trainings with state, name, task, main figure, data, when they began and how long they took",
    )
    st.caption(
        f"Tick up to {RUNS_AT_MOST} runs to compare them. A run that was resumed is one line; one that has written "
        "nothing for a quarter of an hour counts as stopped."
    )
    return [known[name] for name in chosen]


def _row(run: TrainingRun) -> dict[str, str]:
    figure = run.main_figure
    return {
        "State": STATES[run.state],
        "Run": run.name,
        "Task": TASK_WORDS.get(run.task, run.task),
        "Figure": f"{figure[0]} {figure[1]:.4g}" if figure else "–",
        "Data": run.data,
        "Started (UTC)": utc(run.started).removesuffix(" UTC"),
        "Took": duration(run.seconds),
    }


def _take(names: Sequence[str]) -> None:
    """Compare the ticked runs: those that were compared keep their colour, a new one gets the next."""
    ticked = {names[row] for row in st.session_state[TABLE]["selection"]["rows"] if row < len(names)}
    before = [name for name in st.query_params.get("training", "").split(",") if name in ticked]
    added = [name for name in names if name in ticked and name not in before]
    choose_runs([*before, *added][:RUNS_AT_MOST])
    if not ticked:
        st.query_params["training"] = ""  # none, which is not the same as none chosen yet


def compare(runs: Sequence[TrainingRun]) -> None:
    """Draw the controls, the curves, the figures and the settings of the compared runs."""
    if not runs:
        st.info("Tick runs in the table to see their curves side by side.", title="No run is chosen.")
        return
    metrics = _metrics(runs)
    if not metrics:
        st.info(
            "It appears with the first epoch; a run without the logger mlflow has none.", title="No curve is there yet."
        )
    else:
        shown, axis, logarithmic, smoothing = _controls(metrics)
        live = any(run.state in ("running", "waiting") for run in runs)
        draw = partial(_charts, {run.name: run.state for run in runs}, shown, axis, logarithmic, smoothing)
        st.fragment(draw, run_every=WATCH if live else None)()
        _figures(runs, metrics)
    _settings(runs)


def _metrics(runs: Sequence[TrainingRun]) -> list[str]:
    """Return the metrics of the runs; what the layers are watched by comes last."""
    names = {name for run in runs for name in run.figures} - set(_NEVER)
    return sorted(names, key=lambda name: (name.startswith("monitor/"), name))


def _controls(metrics: list[str]) -> tuple[list[str], Axis, bool, float]:
    usual = [name for name in _DRAWN_FIRST if name in metrics]
    usual += [name for name in metrics if name.startswith("val/") and name not in usual]
    kept = [name for name in st.session_state.get(METRICS, []) if name in metrics]
    st.session_state[METRICS] = kept or (usual or metrics)[:_CHARTS_AT_FIRST]
    what, how = st.columns([3, 4], vertical_alignment="bottom")
    shown = what.multiselect("Metrics", metrics, key=METRICS, placeholder="Choose what to draw")
    with how.container(horizontal=True, vertical_alignment="bottom"):
        axis: Axis = st.segmented_control(
            "Against", list(AXES), default="steps", required=True, format_func=str.capitalize, key=AXIS
        )
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.95,
            0.0,
            0.05,
            key=SMOOTH,
            width=200,
            help="Weight of the values before in a running mean. The values as they are stay visible, thin. "
            "It is for the eye: read figures with 0.",
        )
        logarithmic = st.toggle("Log scale", key=LOG, help="Values of 0 and below cannot be drawn on it.")
    return shown, axis, logarithmic, smoothing


def _charts(
    states: Mapping[str, RunState], metrics: list[str], axis: Axis, logarithmic: bool, smoothing: float
) -> None:
    """Draw the curves; the whole page again once a run began or ended, which its table and its parts tell."""
    with errors_shown():
        known, names = trainings(), list(states)
        runs = [known[name] for name in names if name in known]
        if any(run.state != states[run.name] for run in runs):
            st.rerun()
        _progress(runs)
        st.html(_legend(runs))
        found = {run.name: curves(run.ids, tuple(metrics)) for run in runs}
        for start in range(0, len(metrics), 2):
            for place, metric in zip(st.columns(2), metrics[start : start + 2], strict=False):
                lines = {name: each[metric] for name, each in found.items() if metric in each}
                chart = metric_chart(metric, lines, names, axis, logarithmic, smoothing)
                place.markdown(f"**{metric}**", help=training_help(metric))
                place.plotly_chart(
                    chart.figure, key=f"training-chart-{metric}", alt=chart.alt, config={"displaylogo": False}
                )


def _progress(runs: Sequence[TrainingRun]) -> None:
    """Say how far the compared runs are that a job trains now."""
    for run in runs:
        if run.job is None:
            continue
        job = loaders.jobs().get(run.job)
        share = min(job.done / job.total, 1.0) if job.total else 0.0
        steps = (
            f"step {job.done:,} of {job.total:,}, {duration(job.seconds_left())} left" if job.total > 1 else job.stage
        )
        st.progress(share, text=f"**{run.name}** · {steps if job.state == 'running' and steps else STATES[run.state]}")


def _legend(runs: Sequence[TrainingRun]) -> str:
    """Return what each run looks like in all charts, as HTML: its dash, its mark and its name."""
    items = []
    for number, run in enumerate(runs):
        colour, dash, mark = look_of(number)
        left, right = _STROKES[dash]
        sign = f'<span style="color:{colour};font-weight:700" aria-hidden="true">{left}{_SIGNS[mark]}{right}</span>'
        items.append(f"<span>{sign} {escape(run.name)}</span>")
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 26px;font-size:0.875rem">{"".join(items)}</div>'


def _figures(runs: Sequence[TrainingRun], metrics: Sequence[str]) -> None:
    """Draw the latest value of each metric of each run."""
    st.subheader("Latest figures")
    rows = [[name, *(_number(run.figures.get(name)) for run in runs)] for name in metrics]
    frame = pd.DataFrame(rows, columns=["Metric", *(run.name for run in runs)])
    st.dataframe(frame, hide_index=True, key="training-figures", alt="Latest value of each metric of each run")
    st.caption(
        "Of the last epoch, on each run's own validation tiles: only runs with the same data, fold and split can be "
        "compared by them. No unit; cross entropies in nats."
    )


def _settings(runs: Sequence[TrainingRun]) -> None:
    """Draw the settings in which the runs differ."""
    if len(runs) < 2:
        return
    st.subheader("What differs")
    rows = differing(runs)
    if not rows:
        st.caption("These runs have the same settings.")
        return
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={"Setting": {"width": 240}},
        key="training-settings",
        alt="Settings in which the runs differ",
    )
    data = [row["Setting"] for row in rows if row["Setting"] in ("data.root", "data.fold", "data.event", "data.source")]
    if data:
        st.caption(f":material/warning: Not the same validation tiles ({', '.join(data)}): curves tell no winner.")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if math.isfinite(value) else "not a number"
