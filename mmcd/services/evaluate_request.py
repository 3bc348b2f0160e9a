"""What may be asked of an evaluation, and what every evaluation does with its answer."""

import math
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mmcd.cards import Card
from mmcd.config import Config
from mmcd.data.bright_splits import Protocol
from mmcd.inference.exported import BackendChoice
from mmcd.models.devices import Device, Precision

DownstreamName = Literal["eurosat", "bigearthnet", "oscd", "pastis", "gid"]
"""Data sets that pretrained trunks are measured on, see `mmcd.training.benchmarks`."""

DOWNSTREAM: tuple[DownstreamName, ...] = get_args(DownstreamName)

DatasetName = Literal["ombria", "bright", "levir", DownstreamName]
SplitName = Literal["train", "val", "holdout", "test", "unsupervised"]

EVENT_PLACE = "{event}"
"""Stands in the path of a card for the event that the card was trained without."""

ALL_EVENTS = "all"


class EvaluateRequest(Config):
    """What to measure.

    Attributes:
        model: Name of a model or path of a card, for LEVIR-CD also of a checkpoint of reference system 1; with
            ``hold_out`` all, a path with `EVENT_PLACE` in it. For a downstream task name or card of a trunk,
            ``random`` or ``imagenet``.
        dataset: Name of the data set.
        root: Its folder.
        event: One event; all tiles of the folder or split when left out.
        split: Part of the data set: ``train`` or ``test`` of OMBRIA's main set, a list of BRIGHT's or
            ``unsupervised``, all its standard tiles but val, or ``train``, ``val`` or ``test`` of LEVIR-CD.
        lists: Folder of BRIGHT's split lists; ``splits`` in its folder when left out.
        protocol: Which of BRIGHT's lists.
        hold_out: BRIGHT event that the model was trained without, all of whose tiles are scored; or `ALL_EVENTS`.
        one_shot: The model saw one train and one val tile of that event, which are not scored.
        scores: Folder that gets one score GeoTIFF a tile, and one of classes of a model that maps them.
        device: Device to run on.
        precision: Arithmetic to run in.
        backend: Engine to run in, see `mmcd.inference.exported.choose_export`; figures of cards are torch's.
        seeds: How often a downstream task is trained and measured, with the seeds 0, 1 and so on; those of the
            configuration when left out.
        config: Configuration of a downstream task; the published protocol when left out.
    """

    model: str
    dataset: DatasetName
    root: Path
    event: str | None = None
    split: SplitName | None = None
    lists: Path | None = None
    protocol: Protocol = "standard_ML"
    hold_out: str | None = None
    one_shot: bool = False
    scores: Path | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    backend: BackendChoice = "torch"
    seeds: int | None = Field(default=None, ge=1)
    config: Path | None = None

    @property
    def downstream(self) -> bool:
        """Whether a trunk is asked about rather than a model of change."""
        return self.dataset in DOWNSTREAM

    @model_validator(mode="after")
    def _options_of_trunks(self) -> Self:
        if not self.downstream and (self.seeds is not None or self.config is not None):
            raise ValueError(f"--seeds and --config are for pretrained trunks: --dataset {', '.join(DOWNSTREAM)}")
        others = {
            "event": self.event,
            "split": self.split,
            "scores": self.scores,
            "backend": self.backend != "torch",
        }
        if self.downstream and any(others.values()):
            named = next(name for name, value in others.items() if value)
            raise ValueError(f"--{named} is not for {self.dataset}: its parts are in --config, and it runs in torch")
        return self

    @model_validator(mode="after")
    def _options_of_the_data_set(self) -> Self:
        if self.dataset == "ombria" and self.split not in (None, "train", "test"):
            raise ValueError(f"OMBRIA has the splits train and test, not {self.split}")
        if self.dataset == "levir" and (self.event is not None or self.split in ("holdout", "unsupervised")):
            raise ValueError("LEVIR-CD has the splits train, val and test, and no events")
        brights = self.lists or self.hold_out or self.one_shot or self.protocol != "standard_ML"
        if self.dataset != "bright" and brights:
            raise ValueError("--lists, --protocol, --hold-out and --one-shot are BRIGHT's: give --dataset bright")
        if self.split == "unsupervised" and self.protocol != "standard_ML":
            raise ValueError("--split unsupervised is all but val of the standard_ML lists: leave out --protocol")
        if self.one_shot and not self.hold_out:
            raise ValueError("--one-shot needs the event that the model hardly saw: give --hold-out EVENT")
        if self.hold_out and (self.split not in (None, "test") or self.protocol != "standard_ML" or self.event):
            raise ValueError("--hold-out scores all tiles of its event in the standard_ML lists: give no other part")
        if (self.hold_out == ALL_EVENTS) != (EVENT_PLACE in self.model):
            raise ValueError(f"--hold-out {ALL_EVENTS} needs a card an event: write {EVENT_PLACE} in --model's path")
        return self


def named_result(request: EvaluateRequest, card: Card, tiles: int) -> dict[str, Any]:
    """Return what every result begins with."""
    return {
        "model": card.name,
        "version": card.version,
        "dataset": request.dataset,
        "event": request.event,
        "split": request.split,
        "tiles": tiles,
        "threshold": card.decision.threshold,
    }


def without_nan(value: Any) -> Any:
    """Return the value with NaN, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
