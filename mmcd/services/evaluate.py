"""Measure a model on labelled data, through the same path that scores a user's scene."""

from typing import Any

from mmcd.progress import Progress, silent
from mmcd.services.evaluate_bright import evaluate_bright
from mmcd.services.evaluate_cross_event import evaluate_cross_events
from mmcd.services.evaluate_levir import evaluate_levir
from mmcd.services.evaluate_ombria import evaluate_ombria
from mmcd.services.evaluate_request import ALL_EVENTS, DatasetName, EvaluateRequest, without_nan

__all__ = ["DatasetName", "EvaluateRequest", "evaluate"]


def evaluate(request: EvaluateRequest, progress: Progress = silent) -> dict[str, Any]:
    """Return the metrics of a model at its card's threshold, as JSON values; figures that do not exist are None.

    Every figure is computed from what the model says of all pixels pooled over the tiles, as it is written by
    ``scores``. Of a pretrained trunk, a downstream task is trained and measured once a seed instead.

    Raises:
        ConfigError: The configuration of a downstream task does not fit it.
        DataError: There are no such tiles, or a tile is damaged.
        ModelError: The model is missing, damaged or of another kind.
        StorageError: The scores cannot be written.
    """
    if request.downstream:
        from mmcd.services.evaluate_downstream import evaluate_downstream  # Lightning takes seconds to load

        found = evaluate_downstream(request, progress)
    elif request.dataset == "ombria":
        found = evaluate_ombria(request, progress)
    elif request.dataset == "levir":
        found = evaluate_levir(request, progress)
    elif request.hold_out == ALL_EVENTS:
        found = evaluate_cross_events(request, progress)
    else:
        found = evaluate_bright(request, progress)
    values: dict[str, Any] = without_nan(found)
    return values
