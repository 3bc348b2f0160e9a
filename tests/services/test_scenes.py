"""Adding a scene: fetched, checked, then kept; nothing is kept of what was refused."""

from pathlib import Path

import pytest

from mmcd.errors import InputError
from mmcd.services.scenes import AddSceneRequest, add_scene, check_scene, free_id, get_scene, keep_scene, list_scenes
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
