"""Metrics of a two-image segmentation network from set-level counts, under names that say what they are.

Reference system 1 reports a "Dice" near 0.9 beside an IoU near 0.7 of the same maps: it is the mean over the two
classes, background included. Here that figure keeps its value and tells it in its name, ``macro_dice_with_background``;
the F1 of the change class (which is its Dice) stands beside it as ``change_f1``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryJaccardIndex,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from mmcd.errors import ConfigError
from mmcd.models.siamese import change_logit


class ChangeMetrics(torch.nn.Module):
    """Counts of all batches since the last reset, and the metrics of their sum; nothing is averaged over batches.

    Keys for change alone: ``change_iou``, ``change_f1`` and ``macro_dice_with_background``. For several classes, with
    change in some of them, also ``iou/<class>`` and ``f1/<class>``, ``miou`` (their mean, background included) and
    ``accuracy``.

    Args:
        classes: Class names, index 0 background; two for a single logit of change.
        changed_from: First class that counts as changed.

    Raises:
        ConfigError: There are fewer than two classes, or none of them or all count as changed.
    """

    def __init__(self, classes: Sequence[str] = ("unchanged", "changed"), changed_from: int = 1) -> None:
        super().__init__()
        if not 1 <= changed_from < len(classes):
            raise ConfigError(
                f"Of {len(classes)} classes, those from number {changed_from} cannot be the changed ones.",
                "Name the background and one class or more, and let changed_from be one of their numbers.",
            )
        self.changed_from, self.number = changed_from, len(classes)
        self.change = MetricCollection({"change_iou": BinaryJaccardIndex(), "change_f1": BinaryF1Score()})
        self.background = MulticlassF1Score(2, average="macro")
        by_class = {} if len(classes) == 2 else _by_class(list(classes))
        self.by_class = MetricCollection(by_class)  # type: ignore[arg-type]

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Count a batch.

        Args:
            logits: Logit of change, shape (B, 1, H, W), cut at a probability of one half; or logits of the classes,
                shape (B, K, H, W). The likeliest class counts by class; change is what its classes together make
                likelier than not.
            target: Class of every pixel, shape (B, H, W), int64; anything where it is not valid.
            valid: True where the label is known, same shape.
        """
        several = logits.shape[1] > 1
        logit = change_logit(logits, self.changed_from) if several else logits
        found = (logit[:, 0] > 0)[valid].long()
        known = target[valid]
        changed = (known >= self.changed_from).long()
        self.change.update(found, changed)
        self.background.update(found, changed)
        if len(self.by_class):
            self.by_class.update(logits.argmax(dim=1)[valid], known)

    def compute(self) -> dict[str, float]:
        """Return the metrics in [0, 1] of everything counted; 0 where a class is neither there nor found.

        Means over classes leave such a class out.
        """
        values = {**self.change.compute(), "macro_dice_with_background": self.background.compute()}
        if len(self.by_class):
            values |= self.by_class.compute()
        return {name: float(value) for name, value in values.items()}

    def reset(self) -> None:
        """Forget all counts."""
        for part in (self.change, self.background, self.by_class):
            part.reset()


def _by_class(names: list[str]) -> dict[str, Metric]:
    count = len(names)
    return {
        "iou": ClasswiseWrapper(MulticlassJaccardIndex(count, average="none"), names, prefix="iou/"),
        "f1": ClasswiseWrapper(MulticlassF1Score(count, average="none"), names, prefix="f1/"),
        "miou": MulticlassJaccardIndex(count, average="macro"),
        "accuracy": MulticlassAccuracy(count, average="micro"),
    }
