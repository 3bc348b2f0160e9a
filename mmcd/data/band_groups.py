"""Groups of three bands that reference system 2 shows to one encoder, found by name and never by order."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import standard_name

Preset = Literal["readme", "saco_code", "saco_code_eurosat"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

Groups = Mapping[str, Sequence[str]]
"""Bands as red, green and blue, by the name of their group."""

_SHARED: dict[str, tuple[str, ...]] = {
    "natural": ("B4", "B3", "B2"),
    "near_infrared": ("B8", "B4", "B3"),
    "urban": ("B12", "B11", "B4"),
}

BAND_GROUPS: dict[Preset, Groups] = {
    "readme": {
        **_SHARED,
        "agriculture": ("B11", "B8A", "B2"),
        "atmospheric": ("B12", "B11", "B8A"),
        "complementary_1": ("B1", "B5", "B6"),
        "complementary_2": ("B7", "B8", "B10"),
    },
    # What the published code reads from 12 bands in the order of a folder listing.
    "saco_code": {
        **_SHARED,
        "near_infrared": ("B8A", "B4", "B3"),
        "agriculture": ("B12", "B8", "B2"),
        "atmospheric": ("B12", "B11", "B9"),
        "complementary_1": ("B1", "B5", "B6"),
        "complementary_2": ("B7", "B8", "B9"),
    },
    # What it reads from EuroSAT's 13 bands by their numbers: B8A, which it expects behind B8, is the last one there.
    "saco_code_eurosat": {
        **_SHARED,
        "agriculture": ("B12", "B9", "B2"),
        "atmospheric": ("B12", "B11", "B1"),
        "complementary_1": ("B1", "B5", "B6"),
        "complementary_2": ("B7", "B9", "B10"),
    },
}
"""Seven groups by preset; the default is the README's, which is the paper's."""

TEXTURE_GROUPS: Groups = {
    "texture_1": ("B1", "B11", "B12"),
    "texture_2": ("B2", "B3", "B4"),
    "texture_3": ("B5", "B6", "B7"),
    "texture_4": ("B8", "B8A", "B9"),
}
"""Bands whose textures make an image each in SACo+; with the seven groups an encoder sees eleven images."""


def groups_of(preset: Preset = "readme", leave_out: Collection[str] = ()) -> Groups:
    """Return the groups of a preset.

    Args:
        preset: Whose groups.
        leave_out: Names of groups to do without, for data that lack their bands.

    Raises:
        ConfigError: There is no such preset or group, or none is left.
    """
    if preset not in BAND_GROUPS:
        raise ConfigError(f"There are no band groups {preset!r}.", f"Choose from {', '.join(PRESETS)}.")
    groups = BAND_GROUPS[preset]
    if unknown := sorted(set(leave_out) - set(groups)):
        raise ConfigError(f"There is no band group {unknown[0]!r} to leave out.", f"Choose from {', '.join(groups)}.")
    left = {name: bands for name, bands in groups.items() if name not in leave_out}
    if not left:
        raise ConfigError("All band groups are left out.", "Keep at least one.")
    return left


def group_places(groups: Groups, bands: Sequence[str]) -> Tensor:
    """Return where the bands of every group lie in an image.

    Args:
        groups: Bands of each group.
        bands: Names of the image's bands in its order, standard or not (``B02``, ``blue``).

    Returns:
        Shape (G, 3), int64; ``images[:, places]`` is (B, G, 3, H, W).

    Raises:
        DataError: The image lacks a band of a group, or names one twice.
        ConfigError: A group does not have three bands.
    """
    names = [standard_name(band) or band for band in bands]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"The band {twice[0]} is named twice in {', '.join(bands)}.", "Name every band once.")
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([_places_of(name, members, places) for name, members in groups.items()])


def _places_of(group: str, members: Sequence[str], places: Mapping[str, int]) -> list[int]:
    if len(members) != 3:
        raise ConfigError(
            f"The band group {group!r} has {len(members)} bands, {', '.join(members)}.",
            "Give every group three: they are shown as red, green and blue.",
        )
    wanted = [standard_name(member) or member for member in members]
    missing = [name for name in wanted if name not in places]
    if missing:
        raise DataError(
            f"The band group {group!r} needs {', '.join(wanted)}, but there is no {' and no '.join(missing)} among "
            f"{', '.join(places)}.",
            _instead(group, set(places)),
        )
    return [places[name] for name in wanted]


def _instead(group: str, bands: set[str]) -> str:
    fitting = [name for name, groups in BAND_GROUPS.items() if all(bands.issuperset(each) for each in groups.values())]
    preset = f"Use the groups {fitting[0]!r}, which need only these bands, or leave" if fitting else "Leave"
    return f"{preset} the group {group!r} out."


def select_groups(images: Tensor, places: Tensor) -> Tensor:
    """Return the images of every group.

    Args:
        images: All bands, shape (B, C, H, W).
        places: What `group_places` returned, shape (G, 3), int64.

    Returns:
        Shape (B, G, 3, H, W).
    """
    return images[:, places]


def vegetation_indices(images: Tensor, bands: Sequence[str]) -> Tensor:
    """Return NDVI, EVI and SAVI as one more group for SACo, which does without it by default.

    Args:
        images: Reflectance in [0, 1], shape (B, C, H, W).
        bands: Names of its bands in their order.

    Returns:
        Shape (B, 1, 3, H, W); where a denominator is 0 it is taken for 0.001, as reference system 2 does.

    Raises:
        DataError: B2, B4 or B8 is missing.
    """
    (places,) = group_places({"vegetation": ("B8", "B4", "B2")}, bands).tolist()
    near, red, blue = (images[:, place] for place in places)
    ndvi = (near - red) / _without_zero(near + red)
    evi = 2.5 * (near - red) / _without_zero(near + 6 * red - 7.5 * blue + 1)
    savi = 1.5 * (near - red) / _without_zero(near + red + 0.5)
    return torch.stack([ndvi, evi, savi], dim=1).unsqueeze(1)


def _without_zero(values: Tensor) -> Tensor:
    return values.masked_fill(values == 0, 1e-3)
