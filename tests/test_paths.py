"""The workspace's layout: older ones are brought up to date, newer ones are left alone."""

import json
from pathlib import Path

import pytest

from mmcd import paths
from mmcd.errors import StorageError
from mmcd.geo.catalog import Catalog
from mmcd.paths import SCHEMA_FILE, SCHEMA_VERSION, schema_version
from mmcd.services.runs import list_runs
from mmcd.services.scenes import list_scenes


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_workspace_has_the_present_layout(workspace: Path) -> None:
    assert schema_version(paths.workspace()) == SCHEMA_VERSION
    assert (workspace / "sources").is_dir()


def test_the_first_layout_is_brought_up_to_date_and_keeps_its_scenes_and_runs(workspace: Path) -> None:
    Catalog.create(workspace / "scenes")
    run = workspace / "runs" / ("0" * 32)
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"inputs": {"scene": "s"}, "finished": "2026-01-01T00:00:00+00:00"}))
    before = everything(workspace)
    assert schema_version(workspace) == 1
    assert [found.scene_id for found in list_runs()] == ["s"]
    assert list_scenes()
    assert schema_version(workspace) == SCHEMA_VERSION
    after = everything(workspace)
    assert {name: after[name] for name in before} == before


def test_a_newer_layout_is_refused_and_left_alone(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / SCHEMA_FILE).write_text('{"schema": 99, "unknown": true}')
    before = everything(workspace)
    with pytest.raises(StorageError, match="newer mmcd") as error:
        list_scenes()
    assert "Update mmcd" in error.value.hint
    assert everything(workspace) == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": "two"}'])
def test_a_damaged_version_says_what_to_write(workspace: Path, content: str) -> None:
    workspace.mkdir()
    (workspace / SCHEMA_FILE).write_text(content)
    with pytest.raises(StorageError, match="damaged") as error:
        paths.workspace()
    assert f'{{"schema": {SCHEMA_VERSION}}}' in error.value.hint


def test_an_interrupted_step_is_taken_up_again_and_finished_ones_are_not(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def first(folder: Path) -> None:
        taken.append(1)

    def second(folder: Path) -> None:
        taken.append(2)
        if taken.count(2) == 1:
            raise OSError("the disk is full")

    monkeypatch.setattr(paths, "_MIGRATIONS", {1: first, 2: second})
    monkeypatch.setattr(paths, "SCHEMA_VERSION", 3)
    with pytest.raises(StorageError, match="from schema 2 to 3: the disk is full"):
        paths.workspace()
    assert schema_version(workspace) == 2
    paths.workspace()
    paths.workspace()
    assert taken == [1, 2, 2]
    assert schema_version(workspace) == 3
    assert sorted(path.name for path in workspace.iterdir()) == [SCHEMA_FILE]
