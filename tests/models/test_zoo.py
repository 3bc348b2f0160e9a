import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcd.cards import Branch, Card, Decision, Gsd, write_card
from mmcd.errors import ModelError
from mmcd.models import zoo
from mmcd.models.siamese import ContextSiamese, PseudoSiamese
from mmcd.models.unet import EarlyFusionUNet


@pytest.fixture
def stored(tmp_path):
    """A small model, its weight file and its card."""
    torch.manual_seed(0)
    model = PseudoSiamese(3, 1, width=16, embedding_dim=8).eval()
    sha256 = zoo.save(model, tmp_path / "small.safetensors")
    optical = Branch(
        modality="optical", sensor="any", bands=("red", "green", "blue"), unit="uint8", mean=(0,) * 3, std=(1,) * 3
    )
    sar = Branch(modality="sar", sensor="any", bands=("VV",), unit="db", mean=(0,), std=(1,))
    card = Card(
        name="small", version="1", title="", description="", architecture="siamese",
        settings={"width": 16, "embedding_dim": 8}, weights="small.safetensors", sha256=sha256, pre=optical, post=sar,
        gsd=Gsd(nominal=10, min=5, max=30), classes=("no", "yes"),
        decision=Decision(head_weight=1, cosine_weight=0, threshold=0.5), training={}, licence={"weights": "x"},
    )  # fmt: skip
    write_card(card, tmp_path / "small.toml")
    return model, tmp_path / "small.toml"


def test_build_by_name():
    assert isinstance(zoo.build("siamese", 3, 1, {}), PseudoSiamese)
    assert isinstance(zoo.build("siamese", 3, 1, {"pool": "global", "trunk": "resnet18"}), ContextSiamese)
    centred = zoo.build("siamese", 3, 1, {"pool": "roi_centre", "trunk": "resnet18"})
    assert isinstance(centred, ContextSiamese) and centred.pool == "roi_centre"
    assert isinstance(zoo.build("early_fusion_unet", 3, 1, {}), EarlyFusionUNet)


@pytest.mark.parametrize("settings", [{"widht": 64}, {"trunk": "resnet9"}])
def test_unknown_setting_is_a_model_error(settings):
    with pytest.raises(ModelError, match="cannot be built"):
        zoo.build("siamese", 3, 1, settings)


def test_saved_weights_give_the_same_answers(stored):
    model, card_path = stored
    card, loaded = zoo.load(card_path)
    assert card.name == "small" and not loaded.training
    pre, post = torch.randn(1, 3, 64, 64), torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected, found = model(pre, post), loaded(pre, post)
    torch.testing.assert_close(found.logit, expected.logit, atol=5e-3, rtol=5e-3)
    assert not torch.equal(found.logit, torch.zeros_like(found.logit))
    for name, tensor in model.state_dict().items():
        exact = loaded.state_dict()[name]
        assert torch.equal(tensor, exact) if tensor.ndim <= 1 else torch.equal(tensor.half().float(), exact)


def test_a_changed_byte_is_found(stored):
    _, card_path = stored
    weights = card_path.with_suffix(".safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="do not match their card"):
        zoo.load(card_path)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "not safetensors"])
def test_weights_of_another_model_are_refused(stored, damage):
    model, card_path = stored
    path = card_path.with_suffix(".safetensors")
    weights = load_file(path)
    name = "decoder.logit.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        weights["more"] = torch.zeros(1)
    elif damage == "shape":
        weights[name] = torch.zeros(1, 1, 1, 1)
    save_file(weights, path)
    if damage == "not safetensors":
        path.write_bytes(b"no weights at all")
    with pytest.raises(ModelError):
        zoo.load_weights(model, path)
