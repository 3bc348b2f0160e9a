from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from mmcd.errors import ConfigError, ModelError
from mmcd.models.pretrained import adapt_imagenet, fetch_imagenet, start_from_imagenet
from mmcd.models.siamese import ContextSiamese


@pytest.fixture(scope="module")
def imagenet():
    """A state dict as torchvision's, with numbers of our own."""
    torch.manual_seed(0)
    return resnet18(weights=None).state_dict()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_first_convolution_is_adapted_to_the_bands(imagenet, channels):
    colours = imagenet["conv1.weight"]
    mean = colours.sum(dim=1) / 3
    optical, sar = (adapt_imagenet(imagenet, channels, kind)["conv1.weight"] for kind in ("optical", "sar"))
    assert optical.shape == sar.shape == (64, channels, 7, 7)
    for band in range(channels):
        torch.testing.assert_close(optical[:, band], colours[:, band] if band < 3 else mean)
        torch.testing.assert_close(sar[:, band], mean)


def test_both_trunks_start_from_the_weights_and_projectors_do_not(imagenet):
    torch.manual_seed(1)
    model = ContextSiamese(3, 1, trunk="resnet18", embedding_dim=8)
    projectors = {name: tensor.clone() for name, tensor in model.state_dict().items() if "projector" in name}
    start_from_imagenet(model, imagenet)
    after = model.state_dict()
    for name, tensor in imagenet.items():
        if name.startswith("fc."):
            assert f"optical_encoder.{name}" not in after
            continue
        assert torch.equal(after[f"optical_encoder.{name}"], tensor)
        if name != "conv1.weight":
            assert torch.equal(after[f"sar_encoder.{name}"], tensor)
    assert all(torch.equal(after[name], tensor) for name, tensor in projectors.items())
    model.sar_encoder.conv1.weight.data.zero_()  # a copy: the two trunks share nothing
    assert model.optical_encoder.conv1.weight.abs().sum() > 0 and imagenet["conv1.weight"].abs().sum() > 0


def test_weights_of_another_trunk_are_told(imagenet):
    with pytest.raises(ModelError, match="do not fit the trunk"):
        start_from_imagenet(ContextSiamese(3, 1, trunk="resnet34"), imagenet)
    with pytest.raises(ModelError, match="do not fit the trunk"):
        start_from_imagenet(ContextSiamese(3, 1, trunk="resnet18"), {})


def test_a_file_in_the_cache_is_taken_and_a_damaged_one_is_told(imagenet, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ConfigError, match=r"could not be fetched .*--from-scratch") as caught:
        fetch_imagenet("resnet18")
    path = Path(next(word.rstrip(",") for word in str(caught.value).split() if word.startswith(str(tmp_path))))
    torch.save(imagenet, path)
    found = fetch_imagenet("resnet18")
    assert found.keys() == imagenet.keys() and torch.equal(found["conv1.weight"], imagenet["conv1.weight"])
    path.write_bytes(b"<html>")
    with pytest.raises(ConfigError, match=r"could not be fetched .*--from-scratch") as caught:
        fetch_imagenet("resnet18")
    assert "\n" not in str(caught.value)
