"""The image explorer: three panels that move together, facts of the files, and flags with undo."""

from collections.abc import Callable

import streamlit as st

from mmcd.errors import MmcdError
from mmcd.services.collections import CATALOG, Collection
from mmcd.services.explore import file_facts, legend
from mmcd.services.flags import CODES, MEANING, Code, Flag, add_flag, flags_of, undo_flag
from mmcd.studio.carry import choose_scene
from mmcd.studio.explorer_panels import limits_slider, pictures_figure, swatches
from mmcd.studio.explorer_state import asked_number, show_picture, step_buttons

_DONE, _SAID = "explorer-flags-done", "explorer-said"
_KEYS: dict[Code, str] = {"c": "1", "s": "2"}


def image_explorer(collection: Collection) -> None:
    """Draw the image explorer."""
    number = asked_number("picture", len(collection.pictures))
    picture = collection.pictures[number]
    if collection.key == CATALOG:
        choose_scene(picture.id)
    picture_choice(collection, number)
    left, right = st.columns(2)
    with left:
        pre = limits_slider("Before: black and white at", "explorer-pre")
    with right:
        post = limits_slider("After: black and white at", "explorer-post")
    try:
        figure, step = pictures_figure(picture, pre, post)
        st.plotly_chart(
            figure,
            key="explorer-figure",
            config={"scrollZoom": True, "displayModeBar": False},
            alt=f"{picture.id}: image before, image after" + (" and label" if picture.label else ", no label"),
        )
        st.caption(
            "Drag to pan, scroll to zoom, double-click to fit: all panels move together. "
            + (f"Of every {step} × {step} pixels one is shown." if step > 1 else "All pixels are shown.")
        )
        if picture.label is not None:
            swatches(legend(picture))
        st.dataframe(
            file_facts(picture), hide_index=True, key="explorer-facts", alt="Size, CRS, bands and type of the files"
        )
    except MmcdError as error:
        st.error(error.hint or "Flag the picture or go on.", title=error.message, icon=":material/error:")
    _flags(collection, number)


def picture_choice(collection: Collection, number: int, keyboard: bool = True) -> None:
    """Draw the steps from picture to picture and the jump to one by number or id.

    Args:
        collection: The pictures.
        number: The one that is shown, from 0.
        keyboard: Whether the keys N and P go from picture to picture.
    """
    last = len(collection.pictures) - 1

    def go(by: int) -> None:
        show_picture(collection, number + by)

    def jump() -> None:
        show_picture(collection, int(st.session_state["explorer-number"]) - 1)

    def find() -> None:
        found = collection.number_of(st.session_state["explorer-id"])
        if found is not None:
            show_picture(collection, found)

    st.session_state["explorer-number"] = number + 1
    st.session_state["explorer-id"] = collection.pictures[number].id
    steps, count, name = st.columns([4, 2, 5], vertical_alignment="bottom")
    with steps:
        step_buttons("picture", (1, 10), go, (number == 0, number == last), keyboard)
    count.number_input(f"Picture, of {last + 1:,}", 1, last + 1, step=1, key="explorer-number", on_change=jump)
    names = [picture.id for picture in collection.pictures]
    name.selectbox("Id: type to find one", names, key="explorer-id", on_change=find)


def _flags(collection: Collection, number: int) -> None:
    """Draw what the picture is flagged with, the buttons that flag it, and the undo."""
    picture = collection.pictures[number]

    def mark(code: Code) -> None:
        _do(lambda: _mark(collection, Flag(picture.id, number, code)))

    def undo() -> None:
        _do(lambda: _undo(collection))

    codes = flags_of(collection.flags).get(picture.id, ())
    done: list[Flag] = st.session_state.get(_DONE, {}).get(collection.key, [])
    with st.container(horizontal=True, vertical_alignment="center"):
        for code in CODES:
            label = f"Flag as {MEANING[code]} and go on"
            keys = {"key": f"flag-{code}", "shortcut": _KEYS[code], "icon": ":material/flag:"}
            st.button(label, on_click=mark, args=(code,), disabled=code in codes, **keys)  # type: ignore[arg-type]
        undone = f"Undo: {done[-1].image_id} {MEANING[done[-1].code]}" if done else "Undo"
        st.button(undone, on_click=undo, disabled=not done, key="flag-undo", shortcut="U", icon=":material/undo:")
    known = [MEANING.get(code, code) for code in codes]  # type: ignore[call-overload]
    if known:
        st.markdown(f":orange-badge[:material/flag: Flagged: {', '.join(known)}]")
    if said := st.session_state.pop(_SAID, None):
        st.error(said[1], title=said[0], icon=":material/error:")
    st.caption(
        "Keys: N next, P previous, 1 cloudy, 2 shifted, U undo. Flags are lines `id,index,code` at the end of "
        f"`{collection.flags}`, which `mmcd data index` leaves out; undo takes the line out again."
    )


def _mark(collection: Collection, flag: Flag) -> None:
    if add_flag(collection.flags, flag):
        st.session_state.setdefault(_DONE, {}).setdefault(collection.key, []).append(flag)
    show_picture(collection, flag.index + 1)


def _undo(collection: Collection) -> None:
    flag: Flag = st.session_state[_DONE][collection.key].pop()
    undo_flag(collection.flags, flag)
    show_picture(collection, flag.index)


def _do(act: Callable[[], None]) -> None:
    """Do something in a callback; what goes wrong is said on the page that is drawn next."""
    try:
        act()
    except MmcdError as error:
        st.session_state[_SAID] = (error.message, error.hint)
