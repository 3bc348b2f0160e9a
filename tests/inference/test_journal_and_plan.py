from pathlib import Path

import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcd.geo.grid import Grid, Window
from mmcd.inference.engine import LARGEST_BLOCK, Journal, block_size, plan_blocks

sides = st.integers(1, 3000)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 5000), st.data())
def test_a_plan_covers_the_region_once_with_blocks_of_the_whole(
    height: int, width: int, tile: int, data: st.DataObject
) -> None:
    grid = Grid("EPSG:32631", Affine.identity(), height, width)
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    plan = plan_blocks(grid, region, tile)
    covered = np.zeros(grid.shape, int)
    for part in plan.tiles:
        for block in part:
            assert block.row % plan.block == 0
            assert block.col % plan.block == 0
            covered[block.slices] += 1
    assert covered.max() == 1
    assert (covered[region.slices] == 1).all()
    assert plan.block_count <= (region.height // plan.block + 2) * (region.width // plan.block + 2)


def test_block_size_depends_on_the_whole_scene_and_is_bounded() -> None:
    assert block_size((256, 256)) == 256
    assert block_size((250, 90)) == 256
    assert block_size((20_000, 300)) == LARGEST_BLOCK
    assert LARGEST_BLOCK % 16 == 0


def test_journal_survives_a_cut_last_line_and_another_key(tmp_path: Path) -> None:
    first, second = Window(0, 0, 512, 512), Window(0, 512, 512, 100)
    path = tmp_path / "journal"
    journal = Journal(path, "key")
    assert not journal.started
    journal.add([first])
    journal.add([second])
    assert Journal(path, "key").holds(second)

    text = path.read_text()
    path.write_text(text[:-8])
    resumed = Journal(path, "key")
    assert resumed.holds(first)
    assert not resumed.holds(second)
    resumed.add([second])
    assert Journal(path, "key").holds(second)

    assert not Journal(path, "other inputs").started
