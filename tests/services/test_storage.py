"""What the workspace takes, and clearing it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.errors import Cancelled, InputError, UsageError
from mmcd.jobs import open_store
from mmcd.services import storage
from mmcd.services.runs import list_runs
from mmcd.services.scenes import AddSceneRequest, add_scene, get_scene, list_scenes
from mmcd.services.sources import keep_upload
from mmcd.services.storage import ClearRequest, clear, clearable, removable, remove_scene, usage, words_on_runs


def make_run(workspace: Path, number: int, scene: str, size: int = 1000) -> Path:
    folder = workspace / "runs" / f"{number:032x}"
    folder.mkdir(parents=True)
    manifest = {"inputs": {"scene": scene}, "finished": f"2026-01-0{number}T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "score.tif").write_bytes(bytes(size))
    return folder


def test_usage_counts_every_byte_once(workspace: Path) -> None:
    make_run(workspace, 1, "a", 5000)
    make_run(workspace, 2, "b", 7000)
    found = usage()
    parts = {part.name: part for part in found.parts}
    assert parts["runs"].entries == 2
    assert parts["runs"].size > 12_000
    assert found.size == sum(path.stat().st_size for path in workspace.rglob("*") if path.is_file())
    assert [part.size for part in found.parts] == sorted((part.size for part in found.parts), reverse=True)
    assert json.loads(json.dumps(found.to_dict()))["bytes"] == found.size


def test_a_file_that_vanishes_while_it_is_measured_has_no_size(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = make_run(workspace, 1, "a") / "score.tif"
    walk = os.walk

    def racing(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for step in walk(path):
            gone.unlink(missing_ok=True)
            yield step

    monkeypatch.setattr(storage.os, "walk", racing)
    runs = next(part for part in usage().parts if part.name == "runs")
    assert runs.size == (gone.parent / "manifest.json").stat().st_size


def test_the_runs_of_one_scene_are_cleared_and_the_others_stay(workspace: Path) -> None:
    make_run(workspace, 1, "a")
    kept = make_run(workspace, 2, "b")
    request = ClearRequest.checked(what="runs", scene="a")
    promised = clearable(request)
    assert clear(request) == promised
    assert promised.entries == 1
    assert [run.folder for run in list_runs()] == [kept.resolve()]


def test_all_runs_are_cleared_with_what_was_never_finished(workspace: Path) -> None:
    make_run(workspace, 1, "a")
    (workspace / "runs" / ("f" * 32)).mkdir()
    assert clear(ClearRequest.checked(what="runs")).entries == 2
    assert not list((workspace / "runs").iterdir())


@pytest.mark.parametrize(("scene", "refused"), [(None, True), ("a", True), ("b", False)])
def test_a_run_that_is_being_computed_is_not_pulled_away(workspace: Path, scene: str | None, refused: bool) -> None:
    make_run(workspace, 1, "a")
    open_store(workspace).submit("predict", {"scene": "a"})
    if refused:
        with pytest.raises(InputError, match="being computed"):
            clear(ClearRequest.checked(what="runs", scene=scene))
    assert len(list_runs()) == 1


def test_only_images_that_no_scene_uses_are_cleared(workspace: Path, pair: tuple[Path, Path]) -> None:
    pre, post = (keep_upload(path.name, path.read_bytes()) for path in pair)
    unused = keep_upload("unused.tif", pair[0].read_bytes() + b"more")
    add_scene(AddSceneRequest(pre=str(pre), post=str(post), id="mine"))
    assert clear(ClearRequest.checked(what="sources")).entries == 1
    assert not unused.exists()
    assert get_scene("mine").pre.read_bytes() == pair[0].read_bytes()


@pytest.mark.parametrize("values", [{"what": "scenes"}, {"what": "sources", "scene": "a"}])
def test_nothing_else_can_be_cleared(values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        ClearRequest.checked(**values)


def test_the_commands_ask_before_they_clear(workspace: Path) -> None:
    make_run(workspace, 1, "a")
    runner = CliRunner()
    shown = runner.invoke(app, ["workspace", "show", "--json"])
    assert json.loads(shown.stdout)["parts"]["runs"]["entries"] == 1
    assert runner.invoke(app, ["workspace", "clear", "runs"], input="n\n").exit_code != 0
    assert len(list_runs()) == 1
    cleared = runner.invoke(app, ["workspace", "clear", "runs", "--scene", "a", "--yes", "--json"])
    assert json.loads(cleared.stdout)["entries"] == 1
    assert list_runs() == []


def test_a_scene_goes_with_what_only_it_uses_and_its_runs_stay(workspace: Path, pair: tuple[Path, Path]) -> None:
    pre, post = (keep_upload(path.name, path.read_bytes()) for path in pair)
    add_scene(AddSceneRequest(pre=str(pre), post=str(post), id="mine"))
    run = make_run(workspace, 1, "mine")
    add_scene(AddSceneRequest(pre=str(pre), post=str(pair[1]), id="other"))
    promised = removable("mine")
    assert (promised.entries, promised.size) == (1, post.stat().st_size)
    assert remove_scene("mine") == promised
    assert pre.exists() and not post.parent.exists() and run.is_dir()
    assert get_scene("other").pre == pre
    with pytest.raises(InputError, match="no scene 'mine'"):
        remove_scene("mine")
    assert remove_scene("other").entries == 1
    assert not pre.exists()
    assert all(path.is_file() for path in pair), "images given by path stay"


def test_samples_and_scenes_at_work_are_not_removed(workspace: Path, pair: tuple[Path, Path]) -> None:
    sample = list_scenes()[0]
    with pytest.raises(InputError, match="is a sample"):
        remove_scene(sample.id)
    assert sample.pre.is_file()
    add_scene(AddSceneRequest(pre=str(pair[0]), post=str(pair[1]), id="mine"))
    job = open_store(workspace).submit("predict", {"scene": "mine"})
    with pytest.raises(InputError, match="is being analysed"):
        remove_scene("mine")
    open_store(workspace).cancel(job)
    remove_scene("mine")


def test_the_command_removes_after_a_yes(workspace: Path, pair: tuple[Path, Path]) -> None:
    add_scene(AddSceneRequest(pre=str(pair[0]), post=str(pair[1]), id="mine"))
    runner = CliRunner()
    asked = runner.invoke(app, ["scenes", "remove", "mine"], input="n\n")
    assert isinstance(asked.exception, Cancelled)
    assert "Remove mine for good? [y/N]" in asked.stderr
    make_run(workspace, 1, "mine")
    asked = runner.invoke(app, ["scenes", "remove", "mine"], input="n\n")
    assert "for good? Its only run stays in the workspace and can then only be exported by id" in asked.stderr
    make_run(workspace, 2, "mine")
    assert words_on_runs("mine").startswith("Its 2 runs stay")
    get_scene("mine")
    removed = runner.invoke(app, ["scenes", "remove", "mine", "--yes", "--json"])
    assert json.loads(removed.stdout) == {"id": "mine", "images": 0, "bytes": 0}
    refused = runner.invoke(app, ["scenes", "remove", "simulated-flood-village-07", "--yes"])
    assert "is a sample" in str(refused.exception)
