"""The card of freshly trained weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from mmcd.cards import Card, Decision, write_card
from mmcd.training.config import ChangeTraining, ExportConfig, SimulatedDataConfig
from mmcd.training.patch_config import PatchTraining
from mmcd.training.validation import Outputs, fit_decision

Architecture = Literal["siamese", "fusion_unet"]
"""Networks that have a card."""

_UNCALIBRATED = Decision(head_weight=1.0, cosine_weight=0.0, threshold=0.5)


def write_card_of(
    config: ChangeTraining,
    export: ExportConfig,
    weights: Path,
    sha256: str,
    outputs: Outputs | None,
    training_share: float,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write the card beside the weights and return its path.

    Args:
        config: The run's configuration.
        export: What the card says beyond it.
        weights: The weight file.
        sha256: Its hash.
        outputs: Outputs over tiles that the run did not train on; without them the head stays uncalibrated.
        training_share: Share of change of the training set.
        more: What is told of the training beside the configuration.
    """
    architecture = cast(Architecture, config.model.architecture)  # others have no card
    decision = _UNCALIBRATED if outputs is None else _decision(config, outputs, training_share)
    return write_card_with(config, export, weights, sha256, (architecture, config.model.settings), decision, more)


def write_card_with(
    config: ChangeTraining | PatchTraining,
    export: ExportConfig,
    weights: Path,
    sha256: str,
    network: tuple[Architecture, dict[str, Any]],
    decision: Decision,
    more: Mapping[str, Any] | None = None,
    metrics: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the card of any trained network beside its weights and return the card's path.

    Args:
        config: The run's configuration.
        export: What the card says beyond it.
        weights: The weight file.
        sha256: Its hash.
        network: Class of the weights and its arguments.
        decision: From outputs to probability and threshold.
        more: What is told of the training beside the configuration.
        metrics: What was measured.
    """
    known = {"export", "pre", "post", "model"}
    training = config.model_dump(mode="json", exclude=known, exclude_none=True) | dict(more or {})
    architecture, settings = network
    card = Card(
        name=config.name,
        version=export.version,
        title=export.title,
        description=export.description,
        event_types=export.event_types,
        simulated=export.simulated or isinstance(config.data, SimulatedDataConfig),
        architecture=architecture,
        settings=settings,
        weights=weights.name,
        sha256=sha256,
        pre=config.pre,
        post=config.post,
        gsd=export.gsd,
        classes=export.classes,
        decision=decision,
        training=training | ({"selection": export.selection} if export.selection else {}),
        metrics=tuple(metrics),
        licence=export.licence,
    )
    path = weights.with_suffix(".toml")
    write_card(card, path)
    return path


def _decision(config: ChangeTraining, outputs: Outputs, training_share: float) -> Decision:
    """Fit the card's decision; embeddings that were not trained, or are not there, have no say in it."""
    embedded = config.loss.infonce > 0 and config.model.architecture == "siamese"
    return fit_decision(outputs, training_share, config.data.shifts, cosine=embedded)
