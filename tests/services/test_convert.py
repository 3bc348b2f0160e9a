"""Published checkpoints in each layout: the whole trunk or an error that counts, with nothing run and nothing guessed.

Most files hold tensors of the right shape that repeat one number, their place in the trunk: they take a few kilobytes,
and a tensor that went to another place would show.
"""

import hashlib
import itertools
import json
import os
import pickle
import re
import shlex
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.models import resnet18, resnet101
from typer.testing import CliRunner

from mmcd.cards import read_card
from mmcd.cli import app
from mmcd.config import parse_overrides
from mmcd.errors import ModelError, UsageError
from mmcd.models import plain_checkpoint
from mmcd.models.moco import pooled_trunk
from mmcd.models.published_trunks import read_published
from mmcd.models.trunk_weights import load_trunk, trunk_shapes
from mmcd.models.trunks import FeatureTrunk
from mmcd.services import convert
from mmcd.services.convert import ConvertRequest, convert_weights
from mmcd.services.doctor import diagnose
from mmcd.training.config import ChangeTraining
from mmcd.training.patch_config import PatchTraining
from mmcd.trunk_cards import find_trunk, read_trunk_card

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference-systems.md"
NUMBERS = {"conv1.": "0.", "bn1.": "1.", "layer1.": "4.", "layer2.": "5.", "layer3.": "6.", "layer4.": "7."}
Weights = dict[str, Tensor]


def numbers(shapes: dict[str, torch.Size], start: int = 0) -> Weights:
    """Return tensors of these shapes, each filled with its place."""
    kinds = {name: torch.int64 if name.endswith("num_batches_tracked") else torch.float32 for name in shapes}
    return {
        name: torch.tensor(start + place, dtype=kinds[name]).expand(shape)
        for place, (name, shape) in enumerate(shapes.items())
    }


def trunk(name: FeatureTrunk = "resnet18", bands: int = 3) -> Weights:
    return numbers(trunk_shapes(name, bands))


def numbered(weights: Weights, prefix: str = "") -> Weights:
    """Return weights as a ``Sequential`` names them."""
    places = [(name, next(old for old in NUMBERS if name.startswith(old))) for name in weights]
    return {prefix + NUMBERS[old] + name.removeprefix(old): weights[name] for name, old in places}


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def others(**shapes: tuple[int, ...]) -> Weights:
    """Return tensors that are none of the trunk's; ``__`` stands for a dot."""
    return numbers({name.replace("__", "."): torch.Size(shape) for name, shape in shapes.items()}, start=5000)


HEADS = others(
    heads_q__0__0__weight=(512, 512),
    heads_q__0__2__weight=(128, 512),
    heads_k__0__0__weight=(512, 512),
    queue=(3, 128, 16384),
    queue_ptr=(3,),
)
KEYS = numbered(numbers(trunk_shapes("resnet18", 3), 900), "encoder_k.")
CLASSIFIER = others(fc__weight=(1000, 512), fc__bias=(1000,))
TEN = others(fc__weight=(10, 720), fc__bias=(10,))
DECODER = others(decoder__0__double_conv__0__weight=(8, 8, 3, 3), decoder__4__weight=(1, 8, 1, 1))
PASTIS = others(decoder__0__conv_1__0__weight=(8, 8, 3, 3), decoder__4__bias=(20,))


def lightning(weights: Weights, **settings: Any) -> dict[str, Any]:
    return {"epoch": 199, "global_step": 5, "state_dict": weights, "hyper_parameters": settings}


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


LAYOUTS: dict[str, tuple[str, Any, str, int, dict[str, int]]] = {
    "caco.pth": ("resnet18", numbered(trunk()), "caco", 3, {}),
    "resnet50_caco.pth": ("resnet50", numbered(trunk("resnet50")), "caco", 3, {}),
    "seco.ckpt": (
        "resnet18",
        lightning(numbered(trunk(), "encoder_q.") | KEYS | HEADS),
        "seco",
        3,
        {"encoder_k": 120, "heads_q": 2, "heads_k": 1, "queue": 1, "queue_ptr": 1},
    ),
    "best_change_model.pth": ("resnet50", prefixed(trunk("resnet50"), "encoder.") | DECODER, "saco", 3, {"decoder": 2}),
    "best_classification_model.pth": (
        "resnet18",
        numbered(trunk(), "resnet.model.model.") | prefixed(TEN, "resnet.model."),
        "saco",
        3,
        {"resnet.model.fc": 2},
    ),
    "best_pixel_segmentation.pth": (
        "resnet50",
        prefixed(trunk("resnet50", 10), "encoder.") | PASTIS,
        "saco",
        10,
        {"decoder": 2},
    ),
    "q_weights.pt": (
        "resnet18",
        numbered(trunk(), "model.model.") | others(model__fc__fc1__weight=(1024, 512), model__fc__fc1__bias=(1024,)),
        "saco",
        3,
        {"model.fc.fc1": 2},
    ),
    "checkpoint_9.pt": (
        "resnet34",
        {"epoch": 9, "model_state_dict": numbered(trunk("resnet34"), "model.model."), "loss": 1.0},
        "saco",
        3,
        {},
    ),
    "resnet18_sentinel2_all_moco.pth": ("resnet18", trunk(bands=13), "torchgeo", 13, {}),
    "torchgeo_task.ckpt": ("resnet18", lightning(prefixed(trunk(), "model.")), "torchgeo", 3, {}),
    "resnet18-f37072fd.pth": ("resnet18", trunk() | CLASSIFIER, "torchvision", 3, {"fc": 2}),
    "parallel.pth": ("resnet18", prefixed(trunk() | CLASSIFIER, "module."), "torchvision", 3, {"fc": 2}),
    "swin_t.pth": ("swin_t", trunk("swin_t") | others(head__weight=(1000, 768)), "torchvision", 3, {"head": 1}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_of_every_layout_goes_to_its_place(name: str, tmp_path: Path) -> None:
    body, value, layout, bands, left_out = LAYOUTS[name]
    found = read_published(saved(tmp_path / name, value))
    assert (found.trunk, found.layout, found.bands, found.left_out) == (body, layout, bands, left_out)
    wanted = trunk(body, bands)  # type: ignore[arg-type]
    assert found.weights.keys() == wanted.keys()
    assert all(torch.equal(found.weights[key], tensor) for key, tensor in wanted.items())


def test_counters_that_old_files_lack_are_added(tmp_path: Path) -> None:
    old = {name: tensor for name, tensor in trunk().items() if not name.endswith("num_batches_tracked")}
    found = read_published(saved(tmp_path / "resnet18-old.pth", old | CLASSIFIER))
    assert len(found.weights) == 120 and found.weights["layer4.1.bn2.num_batches_tracked"] == 0


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes that pretend to be an old Lightning's, so that files can name them."""
    made = {}
    for module, name, base in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", object),
        ("pytorch_lightning.utilities.parsing", "AttributeDict", dict),
        ("pl_bolts.models.self_supervised.settings", "Settings", object),
    ):
        kind = type(name, (base,), {"__module__": module})
        for depth in range(1, module.count(".") + 2):
            parent = ".".join(module.split(".")[:depth])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        setattr(sys.modules[module], name, kind)
        made[name] = kind
    return made


@pytest.mark.usefixtures("unwritten")
def test_states_of_lightning_are_not_needed(trainers: dict[str, type], tmp_path: Path) -> None:
    settings = trainers["AttributeDict"](base_encoder="resnet18", emb_spaces=3, data_mode="caco", path=tmp_path)
    bolts = trainers["Settings"]()
    bolts.rate = 0.03
    value = lightning(numbered(trunk(), "encoder_q.") | HEADS) | {
        "hyper_parameters": settings,
        "callbacks": {trainers["ModelCheckpoint"]: {"best_model_score": torch.tensor(1.0), "bolts": bolts}},
    }
    path = saved(tmp_path / "last.ckpt", value)
    for name in trainers:
        assert name.encode() in path.read_bytes()
    done = convert_weights(ConvertRequest(file=path, out=tmp_path / "trunk.safetensors"))
    assert done.tensors == 120
    assert done.card.method == "caco", "said by its settings, not by its name or layout"
    assert done.card.training["settings"] == {
        "epoch": 199,
        "global_step": 5,
        "base_encoder": "resnet18",
        "emb_spaces": 3,
        "data_mode": "caco",
    }


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("never",)


BAD: dict[str, tuple[Any, str]] = {
    "heads.ckpt": (lightning(HEADS), r"holds no trunk that is known here: it has heads_k, heads_q, queue, queue_ptr"),
    "keys.ckpt": (lightning(numbered(trunk(), "encoder_k.")), r"any published layout: its trunk lies under encoder_k"),
    "cut.pth": (
        {name: tensor for name, tensor in numbered(trunk()).items() if name != "6.0.bn1.weight"},
        r"matches 119 of 120 tensors of resnet18: 1 missing \(layer3\.0\.bn1\.weight\)",
    ),
    "first.pth": (
        {name: tensor for name, tensor in numbered(trunk("resnet50")).items() if name != "0.weight"},
        r"matches 317 of 318 tensors of resnet50: 1 missing \(conv1\.weight\)",
    ),
    "narrow.pth": (
        trunk() | {"layer4.1.conv2.weight": torch.zeros(1).expand(256, 512, 3, 3)},
        r"matches 119 of 120 .* 1 of another shape \(layer4\.1\.conv2\.weight\)",
    ),
    "list.pth": ([1, 2], "holds no weights by name"),
    "vit.pth": (others(blocks__0__attn__qkv__weight=(9, 3), norm__bias=(3,)), r"no trunk .* it has blocks, norm\."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_trunk_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    value, message = BAD[name]
    path = saved(tmp_path / name, value)
    with pytest.raises(ModelError, match=message):
        convert_weights(ConvertRequest(file=path, out=tmp_path / "out.safetensors"))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_deeper_network_is_refused_with_what_is_too_much(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in resnet101(weights=None).state_dict().items()}
    path = saved(tmp_path / "resnet101.pth", numbers(shapes))
    with pytest.raises(ModelError, match=r"matches 318 of 318 tensors of resnet50: 306 not expected \(layer3\.10\.bn1"):
        read_published(path)


def test_damaged_files_and_files_with_code_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = saved(tmp_path / "caco.pth", numbered(trunk())).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes(whole[:100])
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(ModelError, match=rf"{name} cannot be read"):
            read_published(tmp_path / name)
    saved(tmp_path / "evil.ckpt", lightning(numbered(trunk(), "encoder_q.")) | {"callbacks": Evil()})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.ckpt", "plain.pth"):
        with pytest.raises(ModelError, match=r"asks for posix\.mkdir, which weights do not need|cannot be read"):
            read_published(tmp_path / name)
    assert not (tmp_path / "never").exists()


def test_code_behind_objects_of_lightning_is_refused_too(
    trainers: dict[str, type], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = lightning(numbered(trunk(), "encoder_q.")) | {"callbacks": {trainers["ModelCheckpoint"]: Evil()}}
    path = saved(tmp_path / "evil.ckpt", value)
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL posix\.mkdir"):
        plain_checkpoint.convert(str(path), str(tmp_path / "plain.pth"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.ckpt"]


def test_a_layout_that_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", numbered(trunk()))
    assert read_published(path, "seco").layout == "seco"
    with pytest.raises(
        ModelError, match=r"does not have the layout torchvision: its trunk lies under the top by numbers"
    ):
        read_published(path, "torchvision")


# --- the card ---


def converted(folder: Path, file: str, value: Any, **options: Any) -> convert.Converted:
    return convert_weights(
        ConvertRequest(file=saved(folder / file, value), out=folder / "trunk.safetensors", **options)
    )


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the 45 MB of weights where only the card is looked at."""
    monkeypatch.setattr("mmcd.models.trunk_weights.save_trunk", lambda weights, card, path: card)


def test_a_converted_trunk_gives_the_features_of_the_published_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = pooled_trunk("resnet18", 3).train()
    published(torch.randn(4, 3, 32, 32))  # moves the statistics away from 0 and 1
    done = converted(tmp_path, "resnet18_seco_geo_1m_200.pth", published.eval().state_dict())
    card, weights = load_trunk(find_trunk(done.path))
    body = resnet18(weights=None).eval()
    body.fc = nn.Identity()
    body.load_state_dict(weights)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(body(image), published(image))
    assert (card.name, card.trunk, card.method, card.bands) == ("trunk", "resnet18", "seco", ("B4", "B3", "B2"))
    assert card.normalisation.lower == (0, 2, 3) and card.normalisation.upper == (129, 103, 88)
    assert card.normalisation.mean == (0.485, 0.456, 0.406)
    assert "EuroSAT protocol divides by 255 only" in card.normalisation.words
    assert card.training["source"] == "resnet18_seco_geo_1m_200.pth" and len(card.training["source_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "bands", "method", "card_bands", "upper"),
    [
        ("resnet18_caco_geo_100k_1000.pth", 3, "caco", "B4 B3 B2", (129, 103, 88)),
        ("resnet18-f37072fd.pth", 3, "imagenet", "B4 B3 B2", (255, 255, 255)),
        ("resnet18_sentinel2_rgb_seco-cefca942.pth", 3, "seco", "B4 B3 B2", (129, 103, 88)),
        ("resnet18_sentinel1_all_decur.pth", 2, "other", "VV VH", (255, 255)),
    ],
)
@pytest.mark.usefixtures("unwritten")
def test_method_bands_and_normalisation_follow_the_source(tmp_path, name, bands, method, card_bands, upper) -> None:
    state = trunk(bands=bands)
    value = numbered(state) if "caco" in name else state | CLASSIFIER if "f37" in name else state
    card = converted(tmp_path, name, value).card
    assert (card.method, " ".join(card.bands), card.normalisation.upper) == (method, card_bands, upper)
    assert card.modality == ("sar" if bands == 2 else "optical")


@pytest.mark.usefixtures("unwritten")
def test_bands_can_be_named_and_have_to_be_as_many(tmp_path: Path) -> None:
    value = trunk(bands=4)
    with pytest.raises(UsageError, match=r"takes 4 bands, which have no usual names.*--bands"):
        converted(tmp_path, "four.pth", value)
    with pytest.raises(UsageError, match="--bands names 2 bands, the first convolution of four"):
        converted(tmp_path, "four.pth", value, bands=("red", "nir"))
    card = converted(tmp_path, "four.pth", value, bands=("red", "green", "B02", "nir"), name="mine").card
    assert card.bands == ("B4", "B3", "B2", "B8") and card.name == "mine"


@pytest.mark.usefixtures("unwritten")
def test_files_of_seco_are_recognised_and_false_ones_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "seco_resnet18_1m.ckpt", lightning(numbered(trunk(), "encoder_q.")))
    first = convert_weights(ConvertRequest(file=path, out=tmp_path / "first"))
    assert "is not that of the published one" in first.notes[0] and first.card.training["source"] == path.name
    monkeypatch.setitem(convert._SECO, hashlib.md5(path.read_bytes()).hexdigest(), "seco_resnet18_1m")
    other = path.rename(tmp_path / "download.bin")
    second = convert_weights(ConvertRequest(file=other, out=tmp_path / "second"))
    assert "seco_resnet18_1m.ckpt as published with SeCo (Zenodo 4728033)" in second.notes[0]
    assert second.card.training["source"] == "seco_resnet18_1m" and second.card.method == "seco"


# --- the commands ---


def test_convert_list_and_verify_from_the_command_line(workspace: Path, tmp_path: Path) -> None:
    source = saved(tmp_path / "resnet18_caco_geo_1m_200.pth", numbered(trunk()))
    out = workspace / "weights" / "caco-r18.safetensors"
    words = ["weights", "convert", str(source), "--out", str(out), "--json"]
    runner = CliRunner()
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["tensors"] == 120 and result["weights"] == str(out) and result["card"]["name"] == "caco-r18"
    again = runner.invoke(app, words)
    assert isinstance(again.exception, UsageError) and f"{out} exists" in again.exception.message
    listed = runner.invoke(app, ["weights", "list"]).stdout
    assert "caco-r18" in listed.partition("To start training from")[2], "apart from the models"
    shown = json.loads(runner.invoke(app, ["weights", "list", "--json"]).stdout)
    assert [card["name"] for card in shown["trunks"]] == ["caco-r18"]
    assert "caco-r18" not in [card["name"] for card in shown["models"]]
    verified = json.loads(runner.invoke(app, ["weights", "verify", "--json"]).stdout)
    assert verified["trunks"] == {"caco-r18": "verified"}
    assert ("trunk caco-r18", "ok") in [(line.subject, line.status) for line in diagnose().lines]
    out.write_bytes(b"something else")
    damaged = runner.invoke(app, ["weights", "verify", "--json"])
    assert damaged.exit_code == 1 and "do not match their card" in json.loads(damaged.stdout)["trunks"]["caco-r18"]
    assert ("trunk caco-r18", "fail") in [(line.subject, line.status) for line in diagnose().lines]


def documented(number: int) -> list[list[str]]:
    """Return the words of the commands in a block of the document's section on public checkpoints."""
    section = DOCUMENT.read_text().partition("## Public checkpoints")[2]
    block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[number]
    return [shlex.split(line) for line in block.splitlines()]


def test_what_the_document_says_of_checkpoints_runs(
    floods: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published = pooled_trunk("resnet18", 3).state_dict()
    saved(tmp_path / "resnet18_caco_geo_1m_200.pth", published)
    saved(tmp_path / "seco_resnet18_1m.ckpt", lightning(prefixed(published, "encoder_q.") | KEYS | HEADS))
    saved(tmp_path / "resnet18_sentinel2_all_moco.pth", trunk(bands=13))
    config = yaml.safe_load((DOCUMENT.parent.parent / "configs" / "flood-s2s1.yaml").read_text())
    config |= {"augment": {"crop": 32}}
    config["data"] |= {"root": str(floods), "folds": 3}
    config["model"]["settings"] = {"width": 16, "embedding_dim": 8}
    config["trainer"] = {"epochs": 1, "device": "cpu", "precision": "fp32", "loggers": []}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "flood-s2s1.yaml").write_text(yaml.safe_dump(config))
    for words in documented(0):
        done = CliRunner().invoke(app, [*words[1:], "--json"], catch_exceptions=False)
        assert words[0] == "mmcd" and done.exit_code == 0, done.output
    started = read_card(Path(json.loads(done.stdout)["card"])).training["init"]
    assert {side: known["trunk"] for side, known in started.items()} == {"pre": "seco", "post": "caco-r18"}
    assert read_trunk_card(tmp_path / "moco-all.toml").bands[8] == "B8A"


@pytest.mark.parametrize("line", range(2))
def test_the_document_starts_reference_forms_with_settings_that_fit(line: int) -> None:
    words = documented(1)[line]
    options = [after for word, after in itertools.pairwise(words) if word == "--set"]
    path = DOCUMENT.parent.parent / words[words.index("--config") + 1]
    kind: type[ChangeTraining | PatchTraining] = PatchTraining if "reference0" in path.name else ChangeTraining
    config = kind.from_yaml(path, parse_overrides(options))
    assert config.model.init is not None and config.model.init.both


def test_words_that_are_no_choice_are_usage(tmp_path: Path) -> None:
    words = ["weights", "convert", str(tmp_path / "no.pth"), "--out", str(tmp_path / "out"), "--format", "keras"]
    assert "--format 'keras'" in str(CliRunner().invoke(app, words).exception)
    missing = CliRunner().invoke(app, words[:-2])
    assert isinstance(missing.exception, ModelError) and "is not a file" in missing.exception.message


def test_the_card_of_an_ordered_dict_is_read_back(tmp_path: Path) -> None:
    done = converted(tmp_path, "resnet18_moco_geo_100k_200.pth", OrderedDict(numbered(trunk())))
    assert read_trunk_card(done.path) == done.card and done.card.method == "moco"
