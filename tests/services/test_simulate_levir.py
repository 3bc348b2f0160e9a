"""Simulated building change in LEVIR-CD's layout, and what the command says about it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.levir import LevirPairs
from mmcd.errors import Cancelled, ConfigError, InputError, UsageError
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_levir import simulate_levir

SIDE = 96


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("levir") / "set"
    heard: list[tuple[str, int, int]] = []
    request = SimulateRequest(out=root, scenes=14, size=SIDE, gsd=1.0, seed=1, layout="levir")
    result = simulate_levir(request, lambda *news: heard.append(news))
    assert heard[-1] == ("simulating", 4, 4) and len(result.scenes) == 14
    assert sorted(result.scenes) == sorted(LevirPairs(root).ids)
    return root


def test_the_reader_reads_it_without_a_warning(made: Path):
    data = LevirPairs(made)
    assert data.warnings == () and len(data) == 14
    assert {sample["pre"].shape for sample in data} == {(3, SIDE, SIDE)}
    assert 0.005 < data.changed_share.mean() < 0.1
    labels = [np.asarray(Image.open(pair.label)) for pair in data.pairs]
    assert {label.ndim for label in labels} == {2} and set(np.unique(labels)) == {0, 255}


def test_towns_are_held_out(made: Path):
    towns = {part: {Path(g).name for g in LevirPairs(made, part).groups} for part in ("train", "val", "test")}
    assert [len(names) for names in towns.values()] == [2, 1, 1]
    assert len(set.union(*towns.values())) == 4


def test_everything_says_simulated(made: Path):
    assert all(path.name.startswith("simulated") for path in made.rglob("*") if path.is_file())
    notes = json.loads((made / "simulated.json").read_text())
    assert notes["simulated"] and {town["part"] for town in notes["towns"]} == {"train", "val", "test"}


def test_crops_of_a_town_touch(made: Path):
    """The last column of one crop continues in the first of the next as any two neighbouring columns do."""
    stems = sorted(path.stem for path in (made / "train" / "A").glob("*_0000_*.png"))
    left, right = (np.asarray(Image.open(made / "train" / "A" / f"{stem}.png")).astype(int) for stem in stems[:2])
    assert stems[0].endswith("_0000_0000") and stems[1] == stems[0][:-4] + f"{SIDE:04d}"
    seam, usual = np.abs(left[:, -1] - right[:, 0]).mean(), np.abs(np.diff(left, axis=1)).mean()
    assert seam < 1.6 * usual < np.abs(left[:, 0] - right[:, -1]).mean()


def test_same_request_writes_the_same_pixels(made: Path, tmp_path: Path):
    simulate_levir(SimulateRequest(out=tmp_path / "again", scenes=3, size=SIDE, gsd=1.0, seed=1, layout="levir"))
    files = list((tmp_path / "again").rglob("*.png"))
    assert len(files) == 9
    for path in files:
        assert path.read_bytes() == (made / path.relative_to(tmp_path / "again")).read_bytes()


def test_what_cannot_be_made_is_refused_and_writes_nothing(made: Path, tmp_path: Path):
    out = tmp_path / "new"
    with pytest.raises(InputError, match="holds files already"):
        simulate_levir(SimulateRequest(out=made, scenes=3, layout="levir"))
    with pytest.raises(ConfigError, match="2 pairs cannot be split"):
        simulate_levir(SimulateRequest(out=out, scenes=2, layout="levir"))
    with pytest.raises(ConfigError, match="no event"):
        simulate_levir(SimulateRequest(out=out, scenes=3, event="flood", layout="levir"))
    with pytest.raises(ConfigError, match="size = 32"):
        simulate_levir(SimulateRequest(out=out, scenes=3, size=16, layout="levir"))
    assert not out.exists()


def test_stopped_run_leaves_whole_towns(tmp_path: Path):
    def stop(_: str, done: int, __: int) -> None:
        if done == 1:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        simulate_levir(SimulateRequest(out=tmp_path, scenes=3, size=SIDE, gsd=1.0, layout="levir"), stop)
    assert len(LevirPairs(tmp_path)) == 1


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", "simulate", *map(str, words)])


def test_command(tmp_path: Path):
    done = run(tmp_path / "set", "--layout", "levir", "--scenes", 3, "--size", 64, "--gsd", 1)
    assert done.exit_code == 0 and "3 pairs in" in done.output
    assert len(LevirPairs(tmp_path / "set")) == 3


@pytest.mark.parametrize("layout", ["bright", "dfc25", "levir"])
def test_samples_in_another_layout_are_a_usage_error(tmp_path: Path, layout: str):
    done = run(tmp_path / "out", "--samples", "--layout", layout)
    assert isinstance(done.exception, UsageError)
    assert f"--layout {layout}" in str(done.exception)
    assert not (tmp_path / "out").exists()
