"""Pretrained trunks: whole or refused with a count, found by name or path, the same answer for grey in other bands."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from mmcd.cards import find_card, list_cards, read_card
from mmcd.errors import ModelError, StorageError
from mmcd.models import trunk_weights
from mmcd.models.fusion_unet import FusionUNet
from mmcd.models.moco import pooled_trunk
from mmcd.models.pretrained import fetch_imagenet
from mmcd.models.trunk_features import TrunkFeatures
from mmcd.models.trunk_weights import (
    adapt_bands,
    first_convolution,
    load_trunk,
    numbered_to_torchvision,
    require_match,
    save_trunk,
    trunk_shapes,
)
from mmcd.models.trunks import FEATURE_TRUNKS, FeatureTrunk
from mmcd.trunk_cards import Normalisation, TrunkCard, find_trunk, list_trunks, read_trunk_card

RGB = ("B4", "B3", "B2")
Weights = dict[str, Tensor]


def card_of(bands: tuple[str, ...] = RGB, **values: object) -> TrunkCard:
    ones = (1.0,) * len(bands)
    normalisation = Normalisation(
        lower=(0.0,) * len(bands), upper=(255.0,) * len(bands), mean=ones, std=ones, words="As it is."
    )
    facts = {"name": "season", "version": "1.0", "title": "A trunk", "description": "For tests.", "trunk": "resnet18"}
    return TrunkCard(
        **facts | values, method="seco", bands=bands, normalisation=normalisation, licence={"weights": "MIT"}
    )


@pytest.fixture(scope="module")
def body() -> nn.Module:
    torch.manual_seed(0)
    body = resnet18(weights=None).eval()
    for name, buffer in body.named_buffers():
        if buffer.is_floating_point():
            buffer += 0.1 * torch.rand_like(buffer) * (name.endswith("var") or -1)
    return body


@pytest.fixture(scope="module")
def weights(body: nn.Module) -> Weights:
    return {name: tensor for name, tensor in body.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture(scope="module")
def kept(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trunks") / "season.safetensors"
    save_trunk(weights, card_of(), path)
    return path.with_suffix(".toml")


def test_a_trunk_comes_back_exactly_with_its_card(kept: Path, weights: Weights) -> None:
    card, found = load_trunk(kept)
    assert card.weights == "season.safetensors" and len(card.sha256) == 64
    assert card == read_trunk_card(kept) and card.bands == RGB and card.normalisation.upper == (255.0,) * 3
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(("stored", "megabytes"), [("float16", 23), ("int8", 12)])
def test_smaller_files_give_nearly_the_same_features(body, weights, tmp_path, stored, megabytes) -> None:
    saved = save_trunk(weights, card_of(), tmp_path / "small-1.5", stored)
    assert saved.weights == "small-1.5.safetensors"
    assert (tmp_path / saved.weights).stat().st_size < megabytes * 1e6
    _, found = load_trunk(tmp_path / "small-1.5.toml")
    assert all(tensor.dtype == weights[name].dtype for name, tensor in found.items())
    other = resnet18(weights=None).eval()
    body.fc = other.fc = nn.Identity()
    other.load_state_dict(found)
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        assert torch.cosine_similarity(body(images), other(images)).min() > 0.999


def test_a_damaged_or_cut_file_is_refused(kept: Path, weights: Weights, tmp_path: Path) -> None:
    card = tmp_path / "season.toml"
    card.write_text(kept.read_text())
    with pytest.raises(ModelError, match="are missing"):
        load_trunk(card)
    (tmp_path / "season.safetensors").write_bytes(kept.with_suffix(".safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="do not match their card"):
        load_trunk(card)
    cut = {name: tensor for name, tensor in weights.items() if name != "layer2.0.bn1.weight"}
    with pytest.raises(ModelError, match=r"119 of 120 tensors of resnet18: 1 missing \(layer2.0.bn1.weight\)"):
        save_trunk(cut, card_of(), tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"119 of 120 tensors.*1 of another shape \(conv1.weight\)"):
        save_trunk(weights, card_of(("B4", "B3")), tmp_path / "bands.safetensors")
    assert not list(tmp_path.glob("cut*")) and not list(tmp_path.glob("bands*"))


def test_weights_of_a_deeper_trunk_are_counted(weights: Weights) -> None:
    with pytest.raises(ModelError, match=r"matches 120 of 216 tensors of resnet34: 96 missing"):
        require_match(weights, "resnet34", 3, "season")


def test_a_file_of_an_old_torch_starts_a_trunk_too(body: nn.Module, tmp_path: Path, monkeypatch) -> None:
    """Such files, torchvision's first ones among them, do not count the batches of a norm."""
    old = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith("num_batches_tracked")}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir(parents=True)
    torch.save(old, cached)
    model = FusionUNet(trunk="resnet18", levels=3, width=0.125, embed_dim=64)
    model.load_trunk(fetch_imagenet("resnet18"))
    assert torch.equal(model.encoder3[0].bn1.weight, old["layer2.0.bn1.weight"]) and not model.trunk_is_random


@pytest.mark.parametrize("trunk", FEATURE_TRUNKS)
def test_numbers_of_a_pooled_trunk_become_torchvisions_names(trunk: FeatureTrunk) -> None:
    with torch.device("meta"):
        numbered = pooled_trunk(trunk, 4).state_dict()
        features = TrunkFeatures(trunk, ("B1", "B2", "B3"))
    named = numbered_to_torchvision(numbered, trunk)
    assert {name: tensor.shape for name, tensor in named.items()} == trunk_shapes(trunk, 4)
    with pytest.raises(ModelError, match=r"9\.weight is no layer"):
        numbered_to_torchvision({"9.weight": torch.ones(1)}, trunk)
    # Nothing is averaged silently.
    with pytest.raises(ModelError, match=r"tensors of a \w+ for 3 bands, 1 are left over"):
        features.load(named)
    features.load(named | {first_convolution(trunk): named[first_convolution(trunk)][:, :3]})


BANDS = [
    ("B2", "B3", "B4"),
    ("B4",),
    ("VV", "VH"),
    ("B4", "B3", "B2", "B8"),
    ("B12", "B11", "B4", "B3", "B8A"),
]


@pytest.mark.parametrize("wanted", BANDS)
def test_a_grey_image_is_answered_as_before_in_any_bands(weights: Weights, wanted: tuple[str, ...]) -> None:
    adapted = adapt_bands(weights, RGB, wanted)
    grey = torch.randn(1, 1, 32, 32)
    layer = nn.functional.conv2d
    before = layer(grey.expand(-1, 3, -1, -1), weights["conv1.weight"])
    after = layer(grey.expand(-1, len(wanted), -1, -1), adapted["conv1.weight"])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert all(adapted[name] is tensor for name, tensor in weights.items() if name != "conv1.weight")


def test_known_bands_keep_their_kernels_and_others_get_the_mean(weights: Weights) -> None:
    kernels = weights["conv1.weight"]
    turned = adapt_bands(weights, RGB, ("B2", "B4", "B3"))["conv1.weight"]
    assert torch.equal(turned, kernels[:, [2, 0, 1]])
    more = adapt_bands(weights, RGB, ("B8", "B4", "B3", "B2"))["conv1.weight"]
    torch.testing.assert_close(more[:, 1:], kernels * 3 / 4)
    torch.testing.assert_close(more[:, 0], kernels.mean(dim=1) * 3 / 4)
    radar = adapt_bands(weights, RGB, ("VV",))["conv1.weight"]
    torch.testing.assert_close(radar[:, 0], kernels.sum(dim=1))
    with pytest.raises(ModelError, match="for 3 bands cannot go from VV to B4"):
        adapt_bands(weights, ("VV",), ("B4",))


def test_trunks_are_found_by_name_and_path_from_any_folder(kept: Path, workspace: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_trunk(kept) == kept == find_trunk(str(kept.with_suffix(".safetensors")))
    with pytest.raises(ModelError, match="no trunk called 'season'"):
        find_trunk("season")
    own = workspace / "weights"
    own.mkdir(exist_ok=True)
    (own / "mine.toml").write_text(kept.read_text())
    assert find_trunk("season") == own / "mine.toml" == find_trunk("weights/mine.toml")
    shipped = tmp_path / "installed"
    shipped.mkdir()
    (shipped / "public.toml").write_text(kept.read_text())
    monkeypatch.setattr("mmcd.trunk_cards.weights_dir", lambda: shipped)
    assert find_trunk("season") == shipped / "public.toml"
    assert [path.name for path, _ in list_trunks()] == ["public.toml", "mine.toml"]
    with pytest.raises(ModelError, match=r"Trunks here: season, season"):
        find_trunk("weights/other.toml")
    with pytest.raises(ModelError, match=r"weights convert seco\.ckpt"):
        find_trunk("seco.ckpt")


def test_models_and_trunks_are_never_taken_for_one_another(kept: Path) -> None:
    assert list_cards(kept.parent) == []
    with pytest.raises(ModelError, match="is a pretrained trunk, not a model"):
        read_card(kept)
    model, _ = find_card("flood-s2s1")
    with pytest.raises(ModelError, match="is a whole model, not a pretrained trunk"):
        read_trunk_card(model)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("upper = [\n    255.0,", "have a value for each band"),
        ("lower = [\n    300.0,\n    0.0,\n    0.0,", "lower must lie below upper"),
        ('trunk = "resnet19"', "`trunk` input should be"),
        ("bands = []", "`bands`"),
    ],
)
def test_a_card_that_cannot_be_is_told_by_field(kept: Path, tmp_path: Path, line: str, fault: str) -> None:
    field = line.split(" ")[0]
    value = r"\[[^\]]*\]" if "[" in line else r"\S+"
    damaged = re.sub(rf"^{field} = {value}", line + ("\n]" if "[\n" in line else ""), kept.read_text(), flags=re.M)
    (tmp_path / "card.toml").write_text(damaged)
    with pytest.raises(ModelError, match=fault):
        read_trunk_card(tmp_path / "card.toml")


def test_weights_of_a_full_disk_leave_nothing_behind(weights: Weights, tmp_path: Path, monkeypatch) -> None:
    def full(values: Weights, path: Path) -> None:
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trunk_weights, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save_trunk(weights, card_of(), tmp_path / "season.safetensors")
    assert list(tmp_path.iterdir()) == []
