"""The patch explorer: one patch pair at a time, with its context, its label and what is known of it."""

from typing import get_args

import streamlit as st

from mmcd.data.patch_index import PatchRules, PatchTable
from mmcd.errors import MmcdError
from mmcd.geo.grid import Window
from mmcd.services.collections import CATALOG, Collection, Picture
from mmcd.services.explore import (
    Which,
    check_window,
    context_window,
    label_panel,
    legend,
    outlined,
    patch_facts,
    patches_of,
    walk,
)
from mmcd.studio.carry import choose_scene
from mmcd.studio.explorer_images import picture_choice
from mmcd.studio.explorer_panels import TITLES, image_crop, limits_slider, swatches
from mmcd.studio.explorer_state import asked_choice, asked_number, keep_choice, keep_number, step_buttons

_NAMES: dict[Which, str] = {"all": "All", "positive": "Positive: unchanged", "negative": "Negative: damaged"}
_CONTEXTS = (256, 128, 64)
_WHICH, _CONTEXT = "patch-which", "patch-context"  # keys of the widgets
_STEPS = (1, 10, 100)


def patch_explorer(collection: Collection) -> None:
    """Draw the patch explorer."""
    asked_choice("kind", get_args(Which), _WHICH)
    asked_choice("context", _CONTEXTS, _CONTEXT)
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        chosen: Which | None = st.segmented_control(
            "Patches",
            get_args(Which),
            format_func=_NAMES.__getitem__,
            required=True,
            key=_WHICH,
            on_change=keep_choice,
            args=("kind", "all", _WHICH),
            help="Positive means unchanged here, as in contrastive learning: hardly any damaged pixel in the ROI. In "
            "all figures of accuracy positive means changed.",
        )
    which: Which = chosen or "all"
    context = right.segmented_control(
        "Context, px", _CONTEXTS, required=True, key=_CONTEXT,
        on_change=keep_choice, args=("context", _CONTEXTS[0], _CONTEXT),
        help="Side of the square around the ROI of 16 px; 256 in reference system 0. Patches need all of it.",
    )  # fmt: skip
    rules = PatchRules(context_patch_size=int(context or _CONTEXTS[0]))
    number = asked_number("picture", len(collection.pictures))
    picture_choice(collection, number, keyboard=False)
    try:
        _patch(collection, number, rules, which)
    except MmcdError as error:
        st.error(error.hint or "Go on to the next picture.", title=error.message, icon=":material/error:")


def _patch(collection: Collection, number: int, rules: PatchRules, which: Which) -> None:
    """Draw the patch in the address, or the nearest one where its picture has none of the kind."""
    count = len(patches_of(collection.pictures[number], rules, which))
    place = (number, asked_number("patch", count))
    if not count:
        with st.spinner("Looking for the next patch …"):
            nearest = walk(collection, (number, 0), 0, rules, which)
        if nearest is None:
            st.info("Choose another kind, a smaller context, or a labelled data set.", title="There is no such patch.")
            return
        st.caption(f"{collection.pictures[number].id} has no such patch; this is the nearest one.")
        place = nearest
    keep_number("picture", place[0])
    keep_number("patch", place[1])
    picture = collection.pictures[place[0]]
    if collection.key == CATALOG:
        choose_scene(picture.id)
    table = patches_of(picture, rules, which)
    _steps(collection, place, len(table), rules, which)
    _crops(picture, table, place[1], rules)


def _steps(collection: Collection, place: tuple[int, int], count: int, rules: PatchRules, which: Which) -> None:
    """Draw the steps from patch to patch, over the ends of pictures, and the jump inside one."""

    def go(by: int) -> None:
        try:
            found = walk(collection, place, by, rules, which)
        except MmcdError:
            found = (min(max(place[0] + (1 if by > 0 else -1), 0), len(collection.pictures) - 1), 0)
        if found is not None:
            keep_number("picture", found[0])
            keep_number("patch", found[1])

    def jump(key: str) -> None:
        keep_number("patch", int(st.session_state[key]) - 1)

    for key in ("patch-number", "patch-slider"):
        st.session_state[key] = place[1] + 1
    buttons, field, slider = st.columns([5, 2, 4], vertical_alignment="bottom")
    with buttons:
        step_buttons("patch", _STEPS, go, (False, False))
    field.number_input(
        f"Patch, of {count:,} here", 1, count, step=1, key="patch-number", on_change=jump, args=("patch-number",)
    )
    if count > 1:
        slider.slider("Jump", 1, count, key="patch-slider", on_change=jump, args=("patch-slider",))


def _crops(picture: Picture, table: PatchTable, patch: int, rules: PatchRules) -> None:
    """Draw the context before and after, the label, and what is known of the patch."""
    left, right = st.columns(2)
    with left:
        pre = limits_slider("Before: black and white at", "patch-pre")
    with right:
        post = limits_slider("After: black and white at", "patch-post")
    window = context_window(table, patch, rules)
    check_window(picture, window)
    label = label_panel(picture, window)
    crops = [image_crop(picture.pre, pre, window), image_crop(picture.post, post, window)]
    facts = patch_facts(table, patch)
    for column, title, panel in zip(st.columns(3), TITLES, [*crops, label], strict=True):
        if panel is not None:
            alt = f"{title}: context of the patch at row {facts['row']}, column {facts['col']} of {picture.id}"
            column.image(outlined(panel.pixels, rules), caption=title, width="stretch", alt=alt)
    swatches(legend(picture))
    _facts(picture, facts, window, rules)


def _facts(picture: Picture, facts: dict[str, object], window: Window, rules: PatchRules) -> None:
    building = "yes" if facts["has_building"] else "no"
    st.markdown(
        f"**{str(facts['kind']).capitalize()}** · damaged share of the ROI {facts['damage_ratio']:.1%} · "
        f"building on {rules.building_threshold:.0%} of it or more: {building} · {picture.id} · ROI at row "
        f"{facts['row']:,}, column {facts['col']:,} · context of {window.width:,} px from row {window.row:,}, column "
        f"{window.col:,}"
    )
    st.caption("The frame is the ROI of 16 px. Keys: N next, P previous patch.")
