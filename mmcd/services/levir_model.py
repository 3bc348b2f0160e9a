"""Models of two optical images, wherever they come from, and what they say of a pair in LEVIR-CD's layout.

A model is a card, a run of `mmcd train start`, or a checkpoint of reference system 1, whose trunk is read off its
tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Branch, Card, Decision, Gsd, file_sha256, find_card
from mmcd.data.base import Sample
from mmcd.data.levir import LevirPairs
from mmcd.data.levir_files import BANDS, Part
from mmcd.errors import DataError, ModelError, UsageError
from mmcd.geo.grid import Grid
from mmcd.inference.backends import TorchBackend
from mmcd.inference.engine import score_whole
from mmcd.inference.exported import BackendChoice, choose_export
from mmcd.inference.pair import ArrayPair
from mmcd.inference.predictor import Predictor
from mmcd.models.devices import Device, Precision
from mmcd.paths import workspace

if TYPE_CHECKING:
    from mmcd.models.fusion_unet import FusionUNet

CHECKPOINTS = (".pth", ".pt")
"""How checkpoints of reference system 1 end."""

REFERENCE_SIZE = 512
_LICENCE = {"weights": "as the checkpoint's publisher says", "data": "as the checkpoint's publisher says"}


@dataclass(frozen=True)
class PairModel:
    """A model that is ready to score pairs.

    Attributes:
        card: Its card; of a checkpoint the reference's conventions: a cut at one half of an uncalibrated probability.
        predictor: The network.
        size: Height and width that its training pairs were resized to; None for pairs as they are on disk.
    """

    card: Card
    predictor: Predictor
    size: int | None


def open_model(
    model: str, device: Device = "auto", precision: Precision = "auto", backend: BackendChoice = "torch"
) -> PairModel:
    """Load a model by its name, its card or a checkpoint of reference system 1.

    Args:
        model: Name, path of a card, or path of a checkpoint.
        device: Device to run on.
        precision: Arithmetic to run in.
        backend: Engine to run in.

    Raises:
        ModelError: The model is missing, damaged, or not made for two images of red, green and blue.
        UsageError: A checkpoint is to run in another engine than torch.
    """
    if model.endswith(CHECKPOINTS) and backend not in ("auto", "torch"):
        raise UsageError(f"{model} is a checkpoint, which runs in torch only.", "Leave --backend out.")
    if model.endswith(CHECKPOINTS):
        return _of_checkpoint(Path(model), device, precision)
    path, card = find_card(model)
    optical = {card.pre.modality, card.post.modality} == {"optical"}
    if not optical or {len(card.pre.bands), len(card.post.bands)} != {len(BANDS)} or card.pre.scaling == "patch":
        raise ModelError(
            f"{card.name!r} takes {', '.join(card.pre.bands)} before and {', '.join(card.post.bands)} after; these "
            "pairs have red, green and blue twice.",
            "Choose a model of two optical images, such as building-change-sim.",
        )
    export = choose_export(card, backend, device, precision)
    data = card.training.get("data", {})
    return PairModel(card, Predictor.load(path, device, precision, export), data.get("size"))


def open_run(run: str, device: Device = "auto", precision: Precision = "auto") -> PairModel:
    """Load the model of a finished run.

    Args:
        run: Name of the run in the workspace, or its folder.
        device: Device to run on.
        precision: Arithmetic to run in.

    Raises:
        ModelError: There is no such run, it is not finished or wrote no card.
    """
    folder = Path(run) if Path(run).is_dir() else workspace() / "training" / run
    if not (folder / "config.yaml").is_file():
        raise ModelError(f"There is no run {run!r} in {folder.parent}.", "Give its name or folder, or --model CARD.")
    cards = sorted(folder.glob("*.toml"))
    if not cards:
        raise ModelError(
            f"The run {folder.name!r} has no card: it is not finished, or its configuration has no export.",
            "Finish it with --resume, or add export to its configuration.",
        )
    return open_model(str(cards[0]), device, precision)


def _of_checkpoint(path: Path, device: Device, precision: Precision) -> PairModel:
    """Return a checkpoint of reference system 1 under its conventions.

    Raises:
        ModelError: It is missing, damaged or of another form.
    """
    from mmcd.models.checkpoints import read_plain

    model, settings = _reference_model(read_plain(path))
    images = Branch(
        modality="optical",
        sensor="aerial or satellite photograph",
        bands=BANDS,
        unit="uint8",
        mean=(0.485, 0.456, 0.406),  # of ImageNet
        std=(0.229, 0.224, 0.225),
    )
    card = Card(
        name=path.stem,
        version="0",
        title="A checkpoint of reference system 1",
        description="Buildings raised or torn down between two optical images.",
        architecture="fusion_unet",
        settings=settings,
        weights=path.name,
        sha256=file_sha256(path),
        pre=images,
        post=images,
        gsd=Gsd(nominal=1.0, min=0.3, max=2.0),
        classes=("unchanged", "changed"),
        decision=Decision(head_weight=1.0, cosine_weight=0.0, threshold=0.5),
        training={"data": {"size": REFERENCE_SIZE}},
        licence=_LICENCE,
    )
    return PairModel(card, Predictor(TorchBackend(model, device, precision), card), REFERENCE_SIZE)


def _reference_model(stored: Mapping[str, Any]) -> tuple["FusionUNet", dict[str, Any]]:
    """Return the fusion UNet that a checkpoint belongs to, filled, and its settings."""
    import torch

    from mmcd.models.fusion_unet import FusionUNet, load_reference, reference_trunk

    settings: dict[str, Any] = {"trunk": reference_trunk(stored) or "resnet50"}
    with torch.device("meta"):  # random values of 57 million weights would only be overwritten
        model = FusionUNet(**settings)
    model.to_empty(device="cpu")
    load_reference(model, stored)
    return model.eval(), settings


def open_pairs(root: Path, part: Part | None, size: int | None) -> LevirPairs:
    """Open a part of a data set that is to be measured or shown.

    Raises:
        DataError: It is not there, or the images of a pair differ in size.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give the folder of the data set with --root.")
    return LevirPairs(root, part, size)


def score_sample(sample: Sample, model: PairModel) -> NDArray[np.uint8]:
    """Return the stored score of a pair, as the engine writes it of a user's scene, shape (H, W)."""
    pre, post = sample["pre"].numpy(), sample["post"].numpy()
    return score_whole(ArrayPair(pre, post, grid_of(sample)), model.predictor)


def grid_of(sample: Sample) -> Grid:
    """Return the grid of a pair, which has no georeference."""
    height, width = sample["target"].shape
    return Grid.in_pixels(height, width)


def either(run: str | None, model: str | None, device: Device, precision: Precision) -> PairModel:
    """Load a run or a model, whichever was given.

    Raises:
        UsageError: Both were given, or neither.
        ModelError: It cannot be loaded.
    """
    if (run is None) == (model is None):
        raise UsageError("Either a run or --model must be given.", "Write the name of a run, or --model CARD.")
    return open_run(run, device, precision) if run is not None else open_model(str(model), device, precision)
