"""Checkpoints in the reference's own layout: read whole or refused by name, whatever else lies in the file."""

import io
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from mmcd.errors import ModelError
from mmcd.models import plain_checkpoint
from mmcd.models.checkpoints import Checkpoint, context_siamese, read_checkpoint, read_plain
from mmcd.models.siamese import ContextSiamese

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    return ContextSiamese(3, 1, "resnet18", embedding_dim=8).state_dict()


def saved(path: Path, weights: Weights, **more: object) -> Path:
    torch.save({"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}, **more}, path)
    return path


def test_a_checkpoint_gives_its_network_and_figures(weights: Weights, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "best_model.pth", weights, val_loss=0.5, scheduler_state_dict={}))
    assert checkpoint.figures == {"epoch": 3, "val_loss": 0.5}
    network = context_siamese(checkpoint)
    assert not network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_trunk_bands_and_embedding_are_read_off_the_tensors() -> None:
    with torch.device("meta"):
        shapes = ContextSiamese(4, 2, "resnet34", embedding_dim=16).state_dict()
    weights = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    network = context_siamese(Checkpoint(Path("best_model.pth"), weights, {}))
    assert network.state_dict().keys() == shapes.keys()
    assert network.optical_encoder.conv1.in_channels == 4 and network.sar_encoder.conv1.in_channels == 2
    assert network.optical_projector.layer2[0].out_features == 16


def test_a_bare_dictionary_is_a_checkpoint_without_figures(tmp_path: Path) -> None:
    torch.save(OrderedDict(weight=torch.ones(2)), tmp_path / "weights.pt")
    checkpoint = read_checkpoint(tmp_path / "weights.pt")
    assert checkpoint.weights["weight"].tolist() == [1, 1] and checkpoint.figures == {}


def few(path: Path, **more: object) -> Path:
    """Write a checkpoint of one tensor."""
    return saved(path, {"weight": torch.ones(2)}, **more)


def test_figures_of_numpy_are_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = few(tmp_path / "best_model.pth", val_loss=np.float64(0.25), val_acc=np.float32(0.5))
    checkpoint = read_checkpoint(path)
    assert checkpoint.figures == {"epoch": 3, "val_loss": 0.25, "val_acc": 0.5}
    assert all(type(value) in (int, float) for value in checkpoint.figures.values())
    assert checkpoint.weights["weight"].tolist() == [1, 1]


def test_figures_of_numpy_1_are_read_too(tmp_path: Path) -> None:
    path = few(tmp_path / "best_model.pth", val_loss=np.float64(0.25))
    path.write_bytes(renamed(path, b"numpy._core.multiarray", b"numpy.core.multiarray"))
    plain_checkpoint.convert(str(path), str(tmp_path / "plain.pth"))
    assert read_checkpoint(tmp_path / "plain.pth").figures == {"epoch": 3, "val_loss": 0.25}


def renamed(path: Path, old: bytes, new: bytes) -> bytes:
    """Return the bytes of a checkpoint whose pickle speaks of another module."""
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name).replace(old, new) if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("never",)


def test_nothing_is_run_that_a_file_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"asks for posix\.mkdir, which weights do not need"):
        read_checkpoint(few(tmp_path / "evil.pth", more=Evil()))
    both = few(tmp_path / "both.pth", val_loss=np.float64(0.5), more=Evil())
    with pytest.raises(ModelError, match=r"asks for posix\.mkdir, which weights do not need"):
        read_checkpoint(both)  # numpy comes first in it, so that the second reader meets the rest
    assert not (tmp_path / "never").exists()


def test_scalars_become_plain_wherever_they_lie() -> None:
    found = plain_checkpoint.plain({"a": [np.float32(0.5), (np.int64(3), "text")], np.int64(1): None})
    assert found == {"a": [0.5, [3, "text"]], 1: None}
    assert type(found["a"][0]) is float and type(found["a"][1][0]) is int


def test_weights_that_do_not_match_are_named(weights: Weights, tmp_path: Path) -> None:
    changed = dict(weights)
    del changed["sar_encoder.bn1.weight"]
    changed["extra.weight"] = torch.zeros(1)
    changed["optical_projector.layer2.0.bias"] = torch.zeros(9)
    with pytest.raises(ModelError) as refusal:
        context_siamese(Checkpoint(tmp_path / "cut.pth", changed, {}))
    assert refusal.value.message.endswith(
        "1 missing (sar_encoder.bn1.weight); 1 not expected (extra.weight); "
        "1 of another shape (optical_projector.layer2.0.bias)."
    )


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best_model.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"best_model\.pth (cannot be read|is not a file)"):
        read_checkpoint(path)


def test_other_files_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds no weights by name"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"no checkpoint of the patch network: it holds conv1\.weight"):
        context_siamese(read_checkpoint(tmp_path / "other.pt"))


def test_a_file_that_is_none_gets_no_advice_to_read_it_unguarded(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("x\n")
    with pytest.raises(ModelError, match="it is no checkpoint, or holds more than tensors") as raised:
        read_plain(tmp_path / "x.pth")
    assert "weights_only" not in str(raised.value)
