"""What any two-image network says of a pair, in one form: logit of change, distance, and classes where it has them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmcd.errors import ModelError
from mmcd.models.siamese import SiameseOutput, change_logit


class Answers(NamedTuple):
    """Answers of a network, all of the images' height and width.

    Attributes:
        logit: Logit of change, shape (B, 1, H, W), float32.
        distance: ``1 - cosine`` of the embeddings in [0, 2], same shape; 0 of a network without embeddings.
        classes: Logits of the classes, shape (B, K, H, W), float32; None for a head that only knows change.
    """

    logit: Tensor
    distance: Tensor
    classes: Tensor | None


def answers_of(model: nn.Module, output: object) -> Answers:
    """Return a network's output in one form.

    Args:
        model: The network; ``changed_from`` is the first class that counts as changed where it has several, 1 for a
            network that does not say.
        output: What it returned: a `SiameseOutput`, or logits alone of shape (B, 1 or K, H, W).

    Raises:
        ModelError: The network does not answer for every pixel.
    """
    if isinstance(output, SiameseOutput):
        return Answers(output.logit, output.distance, output.classes)
    if not isinstance(output, Tensor):
        raise ModelError("The patch form does not answer for every pixel.", "Use `mmcd infer predict --method patch`.")
    if output.shape[1] == 1:
        return Answers(output, torch.zeros_like(output), None)
    logit = change_logit(output, changed_from(model))
    return Answers(logit, torch.zeros_like(logit), output)


def changed_from(model: nn.Module) -> int:
    """Return the first class of a network's head that counts as changed."""
    return int(getattr(model, "changed_from", 1))
