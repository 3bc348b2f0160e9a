"""One selection fed by map and table. The address holds it; widgets change it in callbacks and are drawn from it.

A callback runs before the page's script, so a choice cannot get lost in a run that another click interrupts.
"""

from collections.abc import Sequence

import streamlit as st

from mmcd.studio.carry import choose_scene

FILTERS = {"search": "", "types": [], "days": ()}
"""Keys of the Scenes page's filters, which are bound to the address, and their values that hide nothing."""


def chosen_scene() -> str | None:
    """Return the id of the selected scene, from the address."""
    chosen: str | None = st.query_params.get("scene")
    return chosen


def choose_marker(map_key: str) -> None:
    """Select the scene whose marker was just clicked.

    Args:
        map_key: Key of the map, which returns ``last_active_drawing``.
    """
    marker = st.session_state[map_key].get("last_active_drawing")
    if marker:
        _choose(marker["properties"].get("id"))


def choose_row(table_key: str, ids: Sequence[str]) -> None:
    """Select the scene whose table row was just clicked.

    Args:
        table_key: Key of the table.
        ids: Ids of the table's rows.
    """
    rows = st.session_state[table_key]["selection"]["rows"]
    if rows and rows[0] < len(ids):
        _choose(ids[rows[0]])


def mark_row(table_key: str, ids: Sequence[str]) -> None:
    """Let a table that is about to be drawn show the selected scene, whoever selected it.

    Args:
        table_key: Key of the table.
        ids: Ids of the table's rows.
    """
    chosen = chosen_scene()
    mark_rows(table_key, [ids.index(chosen)] if chosen in ids else [])


def mark_rows(table_key: str, rows: Sequence[int]) -> None:
    """Let a table that is about to be drawn show some rows as selected, in whichever order they were selected.

    Args:
        table_key: Key of the table.
        rows: Which ones.
    """
    before = st.session_state.get(table_key)
    if before is None or sorted(before["selection"]["rows"]) != sorted(rows):
        st.session_state[table_key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}


def open_view(name: str | None = None, scene: str | None = None) -> None:
    """Go to another view of the Scenes page, or back to the map; filters stay, and the selected scene unless given.

    Args:
        name: A key of the page's views; None is the map.
        scene: Id of a scene to select.
    """
    for key in ("view", "job"):
        st.query_params.pop(key, None)
    if scene is not None:
        choose_scene(scene)
    if name is not None:
        st.query_params["view"] = name


def clear_filters() -> None:
    """Show all scenes again."""
    for key, empty in FILTERS.items():
        st.session_state[key] = empty


def _choose(scene_id: str | None) -> None:
    if scene_id is not None:
        choose_scene(scene_id)
