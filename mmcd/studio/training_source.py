"""What the Training page reads again and again, cached with a bound; curves for a few seconds only, since runs grow."""

from pathlib import Path

import streamlit as st

from mmcd.paths import shipped
from mmcd.services.run_samples import Picture, latest_panels
from mmcd.services.tracking import Curve, read_curves
from mmcd.services.training_configs import TrainingConfig, list_configs, read_config
from mmcd.services.training_runs import TrainingRun, list_trainings
from mmcd.studio.carry import keep_selection
from mmcd.studio.training_charts import RUNS_AT_MOST

FRESH = 4
"""Seconds that what a training writes is kept; a page that watches one draws it again after `WATCH`."""

WATCH = "5s"


@st.cache_data(ttl=FRESH, max_entries=8, show_spinner=False)
def trainings() -> dict[str, TrainingRun]:
    """Return the trainings of the workspace by name, the newest first."""
    return list_trainings()


@st.cache_data(ttl=FRESH, max_entries=64, show_spinner=False)
def curves(ids: tuple[str, ...], metrics: tuple[str, ...]) -> dict[str, Curve]:
    """Return the curves of a training."""
    return read_curves(ids, metrics)


def configs() -> dict[str, TrainingConfig]:
    """Return the shipped configurations."""
    return _configs(max(path.stat().st_mtime for path in shipped("configs").glob("*.yaml")))


@st.cache_data(max_entries=2, show_spinner=False)
def _configs(_changed: float) -> dict[str, TrainingConfig]:
    return list_configs()


def config(path: Path) -> TrainingConfig:
    """Return a configuration of the user's own."""
    return read_config(path)


@st.cache_data(max_entries=8, show_spinner="Reading the pictures …")
def panels(folder: Path, _changed: float) -> tuple[Picture, ...]:
    """Return the newest pictures that a run wrote for TensorBoard."""
    return latest_panels(folder)


def chosen_runs(known: dict[str, TrainingRun]) -> list[str]:
    """Return the names of the runs in the address that are there, in its order; no more than can be told apart."""
    asked = [name for name in st.query_params.get("training", "").split(",") if name in known]
    return list(dict.fromkeys(asked))[:RUNS_AT_MOST]


def choose_runs(names: list[str]) -> None:
    """Put runs into the address."""
    if names:
        st.query_params["training"] = ",".join(names)
    else:
        st.query_params.pop("training", None)
    keep_selection()
