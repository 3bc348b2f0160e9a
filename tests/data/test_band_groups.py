import pytest
import torch

from mmcd.data.band_groups import (
    PRESETS,
    TEXTURE_GROUPS,
    group_places,
    groups_of,
    select_groups,
    vegetation_indices,
)
from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import SENTINEL2_L1C, SENTINEL2_L2A

FOLDER_ORDER = ("B1", "B11", "B12", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9")
EUROSAT_AS_READ = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")


@pytest.mark.parametrize("preset", PRESETS)
def test_seven_groups_of_three_bands(preset):
    places = group_places(groups_of(preset), SENTINEL2_L1C)
    assert places.shape == (7, 3) and places.dtype == torch.int64


def test_the_readme_is_the_default():
    assert groups_of() == groups_of("readme")
    assert groups_of()["agriculture"] == ("B11", "B8A", "B2")


def test_what_the_code_reads_by_its_own_indices():
    assert group_places(groups_of("saco_code"), FOLDER_ORDER)[1].tolist() == [10, 5, 4]
    assert group_places(groups_of("saco_code_eurosat"), EUROSAT_AS_READ).tolist() == [
        [3, 2, 1],
        [7, 3, 2],
        [11, 10, 3],
        [11, 8, 1],
        [11, 10, 0],
        [0, 4, 5],
        [6, 8, 9],
    ]
    assert group_places(TEXTURE_GROUPS, FOLDER_ORDER).flatten().tolist() == list(range(12))


@pytest.mark.parametrize("bands", [FOLDER_ORDER, SENTINEL2_L2A, tuple(reversed(SENTINEL2_L2A))])
def test_order_of_the_file_does_not_matter(bands):
    values = {name: float(number) for number, name in enumerate(SENTINEL2_L2A)}
    images = torch.tensor([values[name] for name in bands]).view(1, -1, 1, 1).expand(2, -1, 4, 4)
    groups = groups_of("saco_code")
    found = select_groups(images, group_places(groups, bands))
    assert found.shape == (2, 7, 3, 4, 4)
    assert found[0, :, :, 0, 0].tolist() == [[values[name] for name in members] for members in groups.values()]


def test_bands_may_be_named_otherwise():
    names = [f"B{number:02d}" for number in range(1, 13)] + ["B8A"]
    assert group_places({"natural": ("red", "green", "blue")}, names).tolist() == [[3, 2, 1]]


def test_a_missing_band_is_named_with_what_to_do():
    with pytest.raises(DataError) as caught:
        group_places(groups_of(), SENTINEL2_L2A)
    assert "'complementary_2' needs B7, B8, B10, but there is no B10" in str(caught.value)
    assert "Use the groups 'saco_code', which need only these bands, or leave the group" in caught.value.hint
    assert group_places(groups_of(leave_out=["complementary_2"]), SENTINEL2_L2A).shape == (6, 3)


def test_no_preset_is_proposed_that_does_not_fit():
    with pytest.raises(DataError) as caught:
        group_places(groups_of(), ("B4", "B3", "B2"))
    assert caught.value.hint == "Leave the group 'near_infrared' out."


def test_a_band_named_twice_is_refused():
    with pytest.raises(DataError, match="B4 is named twice"):
        group_places({"natural": ("B4", "B3", "B2")}, ("B4", "B04", "B3", "B2"))


def test_groups_that_cannot_be():
    with pytest.raises(ConfigError, match=r"'pair' has 2 bands, B4, B3\. Give every group three"):
        group_places({"pair": ("B4", "B3")}, SENTINEL2_L2A)
    with pytest.raises(ConfigError, match="no band groups 'paper'"):
        groups_of("paper")
    with pytest.raises(ConfigError, match="no band group 'clouds' to leave out"):
        groups_of(leave_out=["clouds"])
    with pytest.raises(ConfigError, match="All band groups are left out"):
        groups_of(leave_out=list(groups_of()))


def test_vegetation():
    images = torch.zeros(1, 12, 2, 2)
    for band, value in (("B8", 0.5), ("B4", 0.1), ("B2", 0.05)):
        images[:, SENTINEL2_L2A.index(band)] = value
    images[..., 1, 1] = 0
    found = vegetation_indices(images, SENTINEL2_L2A)
    assert found.shape == (1, 1, 3, 2, 2)
    ndvi, evi, savi = found[0, 0, :, 0, 0].tolist()
    assert ndvi == pytest.approx(0.4 / 0.6) and savi == pytest.approx(1.5 * 0.4 / 1.1)
    assert evi == pytest.approx(2.5 * 0.4 / (0.5 + 0.6 - 0.375 + 1))
    assert torch.equal(found[0, 0, :, 1, 1], torch.zeros(3))
