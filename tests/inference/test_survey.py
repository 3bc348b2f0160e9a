"""The sample of a scene: bounded, on the lattice, inside, and the same whatever is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcd.geo.grid import LATTICE
from mmcd.inference.survey import sample_windows

sides = st.integers(LATTICE, 20_000)


@given(height=sides, width=sides, count=st.sampled_from([1, 4, 9, 16]))
def test_windows_are_few_equal_on_the_lattice_and_inside(height: int, width: int, count: int) -> None:
    windows = sample_windows((height, width), 256, count)
    assert 1 <= len(windows) <= count
    assert len({(window.height, window.width) for window in windows}) == 1
    for window in windows:
        assert window.row % LATTICE == window.col % LATTICE == window.height % LATTICE == 0
        assert 0 <= window.row <= height - window.height
        assert 0 <= window.col <= width - window.width


@pytest.mark.parametrize(("extent", "starts"), [(256, [0]), (512, [0, 256]), (600, [0, 160, 336]), (10_000, [0, 9744])])
def test_windows_reach_both_ends(extent: int, starts: list[int]) -> None:
    rows = sorted({window.row for window in sample_windows((extent, extent), 256)})
    assert rows[0] == starts[0]
    assert extent - 256 - rows[-1] < LATTICE
    assert len(rows) == min(-(-extent // 256), 4)
