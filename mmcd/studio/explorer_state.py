"""Which collection, picture and patch the Explorer shows: all of it is in the address."""

from collections.abc import Callable, Sequence

import streamlit as st

from mmcd.services.collections import Collection
from mmcd.studio.carry import keep_selection


def asked_number(name: str, below: int) -> int:
    """Return a whole number of the address, counted from 0; 0 where it holds none, the nearest where it is too large.

    Args:
        name: Which part of the address; people count from 1 there.
        below: How many there are.
    """
    text = str(st.query_params.get(name, ""))
    number = int(text) - 1 if text.isdecimal() and len(text) < 10 else 0
    return min(max(number, 0), max(below - 1, 0))


def keep_number(name: str, number: int) -> None:
    """Put a number that is counted from 0 into the address, counted from 1."""
    st.query_params[name] = str(number + 1)


def asked_choice(name: str, choices: Sequence[str | int], key: str) -> None:
    """Let a widget that is about to be drawn show the choice in the address, the first where it holds none of them.

    Args:
        name: Which part of the address.
        choices: What can be chosen.
        key: Key of the widget.
    """
    asked = str(st.query_params.get(name, ""))
    st.session_state[key] = next((choice for choice in choices if str(choice) == asked), choices[0])


def keep_choice(name: str, usual: str | int, key: str) -> None:
    """Put what was just chosen into the address; what is usual is left out."""
    chosen = st.session_state[key]
    if chosen == usual:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(chosen)


def open_key(key: str) -> None:
    """Go to another collection, at its first picture."""
    for name in ("picture", "patch"):
        st.query_params.pop(name, None)
    st.query_params["data"] = key
    keep_selection()


def show_picture(collection: Collection, number: int) -> None:
    """Go to a picture; beyond an end to the last one there."""
    keep_number("picture", min(max(number, 0), len(collection.pictures) - 1))
    st.query_params.pop("patch", None)


def step_buttons(
    prefix: str, steps: tuple[int, ...], go: Callable[[int], None], ends: tuple[bool, bool], keyboard: bool = True
) -> None:
    """Draw buttons that go back and on by some steps; those by one have a key, N and P.

    Args:
        prefix: First part of the buttons' keys, which end in ``-1``, ``+10`` and so on.
        steps: Steps, from 1.
        go: Called with the step.
        ends: Whether the first and whether the last one is shown.
        keyboard: Whether they take the keys; only one row of buttons of a page may.
    """
    with st.container(horizontal=True):
        for by in (*(-step for step in reversed(steps)), *steps):
            st.button(
                f"{by:+,}".replace("-", "−"),
                key=f"{prefix}{by:+d}",
                on_click=go,
                args=(by,),
                disabled=ends[0] if by < 0 else ends[1],
                shortcut={1: "N", -1: "P"}.get(by) if keyboard else None,
                help=f"{'On' if by > 0 else 'Back'} by {abs(by):,}",
            )
