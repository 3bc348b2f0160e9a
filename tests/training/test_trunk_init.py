"""Change networks that start from pretrained trunks: the weights arrive, in one branch or both, whatever the bands."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torchvision.models import resnet18

from mmcd.cards import Branch
from mmcd.errors import Cancelled, ConfigError, ModelError
from mmcd.models import zoo
from mmcd.models.fusion_unet import FusionUNet, refuse_random_trunk
from mmcd.models.siamese import ContextSiamese, PseudoSiamese
from mmcd.models.trunk_weights import load_trunk, save_trunk
from mmcd.services.train import TrainRequest, train
from mmcd.training.patch_config import PatchTraining
from mmcd.training.trunk_init import RECORD, TrunkInit, start_from_trunks
from mmcd.trunk_cards import Normalisation, TrunkCard

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {"width": 16, "embedding_dim": 8}
FUSION = {"trunk": "resnet18", "levels": 3, "width": 0.125, "embed_dim": 64}
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trunks for red, green and blue, ``first`` and ``second``."""
    folder = tmp_path_factory.mktemp("trunks")
    ones, zeros = (1.0,) * 3, (0.0,) * 3
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        state = {key: value for key, value in resnet18(weights=None).state_dict().items() if not key.startswith("fc.")}
        card = TrunkCard(
            name=name,
            version="1.0",
            title="A trunk",
            description="For tests.",
            trunk="resnet18",
            method="seco",
            bands=("B4", "B3", "B2"),
            normalisation=Normalisation(lower=zeros, upper=ones, mean=zeros, std=ones, words="As it is."),
            licence={"weights": "MIT"},
        )
        save_trunk(state, card, folder / name, "float16")
    return folder


def branch(*bands: str) -> Branch:
    zeros, ones = (0.0,) * len(bands), (1.0,) * len(bands)
    return Branch(modality="optical", sensor="any", bands=bands, unit="uint8", mean=zeros, std=ones)


def arrived(encoder: torch.nn.Module, weights: Weights) -> set[str]:
    """Return the names of an encoder's tensors that are the trunk's."""
    return {name for name, tensor in encoder.state_dict().items() if torch.equal(tensor, weights[name])}


def weights_of(trunks: Path, name: str) -> Weights:
    return load_trunk(trunks / f"{name}.toml")[1]


def test_each_branch_of_the_siamese_gets_its_trunk_up_to_its_last_stage(trunks: Path, tmp_path: Path) -> None:
    model = PseudoSiamese(3, 2, **SMALL)
    init = TrunkInit(pre=str(trunks / "first.toml"), post=str(trunks / "second.toml"))
    start_from_trunks(model, init, branch("red", "green", "blue"), branch("VV", "VH"), tmp_path)
    first, second = weights_of(trunks, "first"), weights_of(trunks, "second")
    before, after = model.pre.encoder, model.post.encoder
    assert arrived(before, first) == set(before.state_dict()) and "layer4.0.conv1.weight" not in before.state_dict()
    assert arrived(after, second) == set(after.state_dict()) - {"conv1.weight"}
    mean = second["conv1.weight"].mean(dim=1)
    for kernel in after.conv1.weight.unbind(dim=1):
        torch.testing.assert_close(kernel, mean * 3 / 2)
    record = json.loads((tmp_path / RECORD).read_text())
    assert [record[side]["trunk"] for side in ("pre", "post")] == ["first", "second"]
    assert record["pre"]["sha256"] == load_trunk(trunks / "first.toml")[0].sha256 != record["post"]["sha256"]


def test_one_branch_alone_is_started(trunks: Path, tmp_path: Path) -> None:
    model = PseudoSiamese(3, 1, **SMALL)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("pre.enc")}
    start_from_trunks(
        model, TrunkInit(pre=str(trunks / "first.toml")), branch("B11", "B8", "B3"), branch("VV"), tmp_path
    )
    first, now = weights_of(trunks, "first"), model.state_dict()
    assert len(arrived(model.pre.encoder, first)) == len(model.pre.encoder.state_dict()) - 1
    assert all(torch.equal(now[name], tensor) for name, tensor in untouched.items())
    grey = model.pre.encoder.conv1.weight.sum(dim=1)
    torch.testing.assert_close(grey, first["conv1.weight"].sum(dim=1), atol=1e-5, rtol=1e-4)
    assert json.loads((tmp_path / RECORD).read_text()).keys() == {"pre"}


def test_both_encoders_of_the_reference_form_are_started_whole(trunks: Path, tmp_path: Path) -> None:
    model = ContextSiamese(3, 1, trunk="resnet18", embedding_dim=8)
    init = TrunkInit.model_validate(str(trunks / "first.toml"))
    start_from_trunks(model, init, branch("red", "green", "blue"), branch("amplitude"), tmp_path)
    first = weights_of(trunks, "first")
    assert arrived(model.optical_encoder, first) == first.keys()
    assert arrived(model.sar_encoder, first) == first.keys() - {"conv1.weight"}


def test_a_trunk_of_another_depth_is_refused_with_the_count(trunks: Path, tmp_path: Path) -> None:
    init = TrunkInit(post=str(trunks / "first.toml"))
    with pytest.raises(ModelError, match=r"first \(resnet18\) fits 90 of 174 tensors of the branch post") as refused:
        start_from_trunks(PseudoSiamese(3, 1, trunk="resnet34", **SMALL), init, branch("B4"), branch("VV"), tmp_path)
    assert "set its trunk (resnet18 or resnet34)" in refused.value.hint and not (tmp_path / RECORD).exists()
    deeper = FusionUNet(3, 1, **FUSION | {"trunk": "resnet34"})
    with pytest.raises(ModelError, match=r"match .* tensors of a resnet34"):
        start_from_trunks(deeper, init, branch("B4", "B3", "B2"), branch("VV"), tmp_path)


def test_a_frozen_fusion_unet_takes_trunks_for_both_images_only(trunks: Path, tmp_path: Path) -> None:
    first, second = (str(trunks / f"{name}.toml") for name in ("first", "second"))
    sides = branch("B4", "B3", "B2"), branch("VV")
    model = FusionUNet(3, 1, **FUSION)
    start_from_trunks(model, TrunkInit(pre=first), *sides, tmp_path)
    with pytest.raises(ModelError, match="stay random"):
        refuse_random_trunk(model)
    start_from_trunks(model, TrunkInit(post=second), *sides, tmp_path)
    refuse_random_trunk(model)
    weights = weights_of(trunks, "second")
    assert torch.equal(model.encoder1[0].weight, weights_of(trunks, "first")["conv1.weight"])
    assert torch.equal(model.post_encoder3[0].conv1.weight, weights["layer2.0.conv1.weight"])
    torch.testing.assert_close(model.post_encoder1[0].weight[:, 0], weights["conv1.weight"].sum(dim=1))
    shared = FusionUNet(3, 3, **FUSION)
    for init in (TrunkInit(pre=first), TrunkInit(pre=first, post=second)):
        with pytest.raises(ConfigError, match=r"two images share one trunk|different trunks"):
            start_from_trunks(shared, init, sides[0], sides[0], tmp_path)


# --- in a training ---


@pytest.fixture
def request_of(floods: Path, workspace: Path, tmp_path: Path):
    """Return a maker of requests: the shipped configuration made tiny, with steps that move next to nothing."""
    torch.set_num_threads(1)
    values = yaml.safe_load((CONFIGS / "flood-s2s1.yaml").read_text())
    values |= {"name": "tiny", "augment": {"crop": 32}}
    values["data"] |= {"root": str(floods), "folds": 3, "batch_size": 4}
    values["model"]["settings"] = SMALL
    values["optimiser"] = {"lr": 1e-9}
    values["trainer"] = {"epochs": 2, "device": "cpu", "precision": "fp32", "loggers": []}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return lambda resume=False, **overrides: TrainRequest(config=path, overrides=overrides, resume=resume)


def test_a_run_says_what_it_started_from_even_when_resumed_without_the_trunk(
    request_of, trunks: Path, workspace: Path
) -> None:
    own = workspace / "weights"
    own.mkdir(parents=True)
    for file in trunks.glob("first.*"):
        shutil.copy(file, own)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        train(request_of(**{"model.init": "first"}), stop)
    shutil.rmtree(own)
    result = train(request_of(resume=True, **{"model.init": "first"}))
    assert result.card is not None
    card, model = zoo.load(result.card)
    known, weights = load_trunk(trunks / "first.toml")
    for side in ("pre", "post"):
        assert card.training["init"][side]["sha256"] == known.sha256
        encoder = getattr(model, side).encoder
        torch.testing.assert_close(
            encoder.layer3[1].conv2.weight, weights["layer3.1.conv2.weight"], atol=1e-4, rtol=1e-3
        )


def test_a_trunk_that_is_not_there_leaves_no_run_behind_that_is_in_the_way(request_of, trunks: Path) -> None:
    with pytest.raises(ModelError, match="no trunk called 'secco'"):
        train(request_of(**{"model.init": "secco"}))
    with pytest.raises(ModelError, match=r"weights convert seco\.ckpt"):
        train(request_of(**{"model.init": {"pre": "seco.ckpt"}}))


@pytest.mark.parametrize(
    ("config", "overrides", "words"),
    [
        ("reference1", {"model.init": "first"}, "init and pretrained imagenet are two beginnings"),
        ("reference1", {"model.pretrained": "none", "model.init": "a", "model.checkpoint": "b"}, "init and checkpoint"),
        ("flood-s2s1", {"model.init": {}}, "init names no trunk"),
        ("flood-s2s1", {"model.init": {"before": "first"}}, "model.init.before"),
        ("flood-s2s1", {"model.architecture": "early_fusion_unet", "model.init": "a", "export": None}, "has no trunk"),
        ("reference0", {"model.init": "first"}, "two beginnings: set model.pretrained none"),
        (
            "reference0",
            {"model.init": {"pre": "first"}, "model.pretrained": "none", "model.freeze_resnet": True},
            "would keep random trunks",
        ),
    ],
)
def test_beginnings_that_exclude_one_another_are_told(config: str, overrides: dict[str, object], words: str) -> None:
    path = next(CONFIGS.glob(f"{config}*.yaml"))
    with pytest.raises(ConfigError, match=words):
        train(TrainRequest(config=path, overrides=overrides))


def test_patches_can_be_frozen_on_pretrained_trunks() -> None:
    start = {"model.init": "first", "model.pretrained": "none", "model.freeze_resnet": True}
    config = PatchTraining.from_yaml(next(CONFIGS.glob("reference0*.yaml")), start)
    assert config.model.init is not None and config.model.init.both
    assert PatchTraining.model_validate(yaml.safe_load(config.to_yaml())) == config
