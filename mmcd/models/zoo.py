"""Models by name, and their weights as safetensors. Files of others are read by `mmcd.models.checkpoints`."""

from pathlib import Path
from typing import Any, Literal

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcd.cards import Card, file_sha256, read_card, verify_weights
from mmcd.errors import ModelError
from mmcd.models.fusion_unet import FusionUNet
from mmcd.models.siamese import CONTEXT_POOLS, ContextSiamese, PseudoSiamese
from mmcd.models.unet import EarlyFusionUNet

Architecture = Literal["siamese", "early_fusion_unet", "fusion_unet"]


def build(architecture: Architecture, pre_channels: int, post_channels: int, settings: dict[str, Any]) -> nn.Module:
    """Build an untrained model.

    Args:
        architecture: Name as written in cards and configurations.
        pre_channels: Bands of the image before.
        post_channels: Bands of the image after.
        settings: Keyword arguments of the class. For ``siamese``, ``pool="roi"`` (default) is `PseudoSiamese` and
            ``pool="global"`` or ``"roi_centre"`` is `ContextSiamese`.

    Raises:
        ModelError: A setting is not known to the model.
    """
    settings = dict(settings)
    model: type[nn.Module] = FusionUNet if architecture == "fusion_unet" else EarlyFusionUNet
    if architecture == "siamese":
        contexts = settings.get("pool") in CONTEXT_POOLS
        model = ContextSiamese if contexts else PseudoSiamese
        if settings.get("pool") == "roi":
            del settings["pool"]
    try:
        return model(pre_channels, post_channels, **settings)
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"{architecture} cannot be built with {settings}: {error}.", "Correct the settings."
        ) from error


def save(model: nn.Module, path: Path) -> str:
    """Write a model's weights as safetensors and return the file's SHA-256.

    Convolutions and linear maps are stored in half precision, which halves the file and changes no score visibly;
    biases and batch-norm statistics, which span more orders of magnitude, stay in single precision.
    """
    weights = {name: _stored(tensor.detach().cpu()) for name, tensor in model.state_dict().items()}
    save_file(weights, path)
    return file_sha256(path)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.half().contiguous() if tensor.ndim > 1 else tensor.contiguous()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; every tensor must be there, in its shape, and none left over.

    Raises:
        ModelError: The file cannot be read or does not match the model completely.
    """
    try:
        weights = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"The weights {path} cannot be read: {error}.", "Restore the file.") from error
    wanted = model.state_dict()
    fitting = [name for name in wanted if name in weights and weights[name].shape == wanted[name].shape]
    extra = len(weights.keys() - wanted.keys())
    if len(fitting) != len(wanted) or extra:
        raise ModelError(
            f"The weights {path} match {len(fitting)} of {len(wanted)} tensors of the model, {extra} are left over.",
            "They belong to another model or another number of bands.",
        )
    model.load_state_dict(weights)


def load(card_path: Path) -> tuple[Card, nn.Module]:
    """Return a card and its model in evaluation mode, after the weight file's hash was checked.

    Raises:
        ModelError: Card or weights are missing, damaged or do not match.
    """
    card = read_card(card_path)
    path = verify_weights(card_path, card)
    model = build(card.architecture, len(card.pre.bands), len(card.post.bands), card.settings)
    load_weights(model, path)
    return card, model.eval()
