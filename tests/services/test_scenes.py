"""Adding a scene: fetched, checked, then kept; nothing is kept of what was refused."""

import json
from pathlib import Path

import pytest

from mmcd import locks
from mmcd.errors import InputError, StorageError
from mmcd.locks import turn
from mmcd.paths import workspace_folder
from mmcd.services import scenes
from mmcd.services.runs import list_runs
from mmcd.services.scenes import AddSceneRequest, add_scene, check_scene, free_id, get_scene, keep_scene, list_scenes
from mmcd.services.storage import ClearRequest, clear, remove_scene
from mmcd.services.worker import HANDLERS


def request_of(pair: tuple[Path, Path], **values: str) -> AddSceneRequest:
    return AddSceneRequest(pre=str(pair[0]), post=str(pair[1]), **{"id": "mine", **values})


def test_a_pair_is_checked_first_and_kept_on_demand(workspace: Path, pair: tuple[Path, Path]) -> None:
    request = request_of(pair, pre_date="2024-05-01", post_date="2024-05-20", post_sensor="Sentinel-1", title="Flöde")
    told: list[str] = []
    checked = check_scene(request, lambda stage, done, total: told.append(stage))
    assert not checked.report.refused
    assert "checking the images" in told
    assert "mine" not in {scene.id for scene in list_scenes()}
    assert keep_scene(checked.request) == get_scene("mine")
    scene = get_scene("mine")
    assert (scene.title, scene.post_sensor, scene.gsd) == ("Flöde", "Sentinel-1", 10)
    assert str(scene.post_date) == "2024-05-20"
    assert scene.geometry is not None


def test_a_refused_pair_leaves_nothing_behind(workspace: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(InputError, match="was not added"):
        add_scene(request_of((pair[0], tmp_path / "text.tif")))
    assert "mine" not in {scene.id for scene in list_scenes()}


def test_labels_and_polygons_that_cannot_be_read_are_refused(workspace: Path, pair: tuple[Path, Path]) -> None:
    nowhere = pair[0].with_name("nowhere")
    report = check_scene(request_of(pair, label=f"{nowhere}.tif", footprints=f"{nowhere}.gpkg")).report
    assert [finding.subject for finding in report.findings if finding.severity == "refuse"] == ["label", "footprints"]
    assert report.refused and report.grid is None
    with pytest.raises(InputError, match=r"nowhere\.tif does not exist.*was not added"):
        add_scene(request_of(pair, label=f"{nowhere}.tif"))


@pytest.mark.parametrize(
    ("values", "words"),
    [({"id": "a b"}, "not a scene id"), ({"id": "../x"}, "not a scene id"), ({"pre_date": "May"}, "not a day")],
)
def test_words_are_refused_before_anything_is_fetched(workspace: Path, values: dict[str, str], words: str) -> None:
    nowhere = (Path("http://127.0.0.1:9/a.tif"), Path("b.tif"))
    with pytest.raises(InputError, match=words):
        check_scene(request_of(nowhere, **values))


def test_a_new_scene_gets_a_free_id_from_its_title(workspace: Path, pair: tuple[Path, Path]) -> None:
    assert free_id("Überflutung, São Paulo!") == "uberflutung-sao-paulo"
    assert free_id("洪水") == "scene"
    add_scene(request_of(pair, id="mine"))
    assert free_id("Mine") == "mine-2"


def test_the_worker_checks_a_pair_for_the_page(workspace: Path, pair: tuple[Path, Path]) -> None:
    found = HANDLERS["check_scene"](request_of(pair).model_dump(mode="json"), lambda stage, done, total: None)
    assert found["report"]["refused"] is False
    assert keep_scene(AddSceneRequest.checked(**found["request"])).id == "mine"


def test_the_id_of_a_removed_scene_is_free_again_once_its_runs_are_gone(
    workspace: Path, pair: tuple[Path, Path]
) -> None:
    add_scene(request_of(pair))
    (workspace / "runs" / ("0" * 32)).mkdir(parents=True)
    manifest = {"inputs": {"scene": "mine"}, "finished": "2026-01-01T00:00:00+00:00"}
    (workspace / "runs" / ("0" * 32) / "manifest.json").write_text(json.dumps(manifest))
    remove_scene("mine")
    for refused in (check_scene, keep_scene):
        with pytest.raises(InputError, match=r"runs of a scene 'mine' that was removed\. Clear them first"):
            refused(request_of(pair))
    assert free_id("Mine") == "mine-2"
    clear(ClearRequest.checked(what="runs", scene="mine"))
    assert not list_runs("mine") and free_id("Mine") == "mine"
    add_scene(request_of(pair))


def test_who_reads_scenes_writes_no_catalog_over_one_that_is_being_made(
    workspace: Path, pair: tuple[Path, Path]
) -> None:
    list_scenes()
    assert not scenes.is_own("mine")
    assert not (workspace / "scenes" / "catalog.json").exists(), "only who adds a scene writes a catalog"
    add_scene(request_of(pair))
    assert scenes.is_own("mine")


def test_who_adds_a_scene_does_not_wait_for_ever(
    workspace: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(scenes, "ATTENDED_SECONDS", 0.05)
    with turn(workspace_folder("locks") / "scenes.lock"), pytest.raises(StorageError, match="Another process holds"):
        keep_scene(request_of(pair))
