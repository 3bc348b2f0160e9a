"""ImageNet weights for the two trunks of the reference form: fetched through torchvision, adapted to n bands."""

import socket
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import (
    ConvNeXt_Tiny_Weights,
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    Swin_T_Weights,
    WeightsEnum,
)

from mmcd.cards import Modality
from mmcd.errors import ConfigError, ModelError
from mmcd.models.encoders import Encoder
from mmcd.models.siamese import ContextSiamese
from mmcd.models.trunk_weights import with_counters
from mmcd.models.trunks import FeatureTrunk

_WEIGHTS: dict[FeatureTrunk, WeightsEnum] = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "swin_t": Swin_T_Weights.IMAGENET1K_V1,
    "convnext_tiny": ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
}
_SECONDS = 30
"""How long a server may be silent before the fetch is given up."""


def adapt_imagenet(weights: Mapping[str, Tensor], channels: int, modality: Modality) -> dict[str, Tensor]:
    """Return ImageNet weights of a ResNet with a first convolution for other bands and without the classifier.

    Optical bands keep the kernels of red, green and blue; each further band gets their mean. Every SAR band gets the
    mean, not rescaled, as in reference system 0.

    Args:
        weights: State dict of torchvision's ResNet.
        channels: Bands of the image.
        modality: Kind of sensor.
    """
    colours = weights["conv1.weight"]  # (64, 3, 7, 7)
    mean = colours.mean(dim=1, keepdim=True)
    known = colours if modality == "optical" else mean[:, :0]
    spare = mean.expand(-1, channels, -1, -1)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    return kept | {"conv1.weight": torch.cat([known, spare], dim=1)[:, :channels].clone()}


def start_from_imagenet(model: ContextSiamese, weights: Mapping[str, Tensor]) -> None:
    """Fill both trunks of a model; its projectors stay as they are.

    Args:
        model: Model whose image before is optical and whose image after is SAR.
        weights: State dict of torchvision's ResNet of the same depth.

    Raises:
        ModelError: The weights are not those of this trunk.
    """
    branches: tuple[tuple[Encoder, Modality], ...] = ((model.optical_encoder, "optical"), (model.sar_encoder, "sar"))
    for encoder, modality in branches:
        try:
            encoder.load_state_dict(adapt_imagenet(weights, encoder.conv1.in_channels, modality))
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"The ImageNet weights do not fit the trunk: {str(error).splitlines()[0]}",
                "Remove the file from torch's cache, or choose the trunk it belongs to.",
            ) from error


def fetch_imagenet(trunk: FeatureTrunk) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of a trunk, from torch's cache or else from its server.

    Raises:
        ConfigError: They are not in the cache and cannot be fetched, or the file is damaged.
    """
    weights = _WEIGHTS[trunk]
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        return with_counters(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, HTTPException, RuntimeError, UnpicklingError, EOFError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
        words = str(getattr(error, "reason", error)) or type(error).__name__
        reason = words.splitlines()[0].rstrip(".")
        raise ConfigError(
            f"The ImageNet weights of {trunk} could not be fetched from {weights.url}: {reason}.",
            f"Put that file at {cached}, or train with --from-scratch.",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def freeze_trunks(model: ContextSiamese) -> None:
    """Let only `layer4` of both trunks and the projectors learn, as the reference's ``freeze_resnet``."""
    for encoder in (model.optical_encoder, model.sar_encoder):
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad = name.startswith("layer4.")
