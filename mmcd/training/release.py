"""The card of freshly trained weights."""

from pathlib import Path
from typing import Literal, cast

from mmcd.cards import Card, Decision, write_card
from mmcd.training.config import ChangeTraining, ExportConfig
from mmcd.training.validation import Outputs, fit_decision

_UNCALIBRATED = Decision(head_weight=1.0, cosine_weight=0.0, threshold=0.5)


def write_card_of(
    config: ChangeTraining,
    export: ExportConfig,
    weights: Path,
    sha256: str,
    outputs: Outputs | None,
    training_share: float,
) -> Path:
    """Write the card beside the weights and return its path.

    Args:
        config: The run's configuration.
        export: What the card says beyond it.
        weights: The weight file.
        sha256: Its hash.
        outputs: Outputs over tiles that the run did not train on; without them the head stays uncalibrated.
        training_share: Share of change of the training set.
    """
    training = config.model_dump(mode="json", exclude={"export", "pre", "post", "model"}, exclude_none=True)
    card = Card(
        name=config.name,
        version=export.version,
        title=export.title,
        description=export.description,
        event_types=export.event_types,
        architecture=cast(Literal["siamese", "fusion_unet"], config.model.architecture),  # others have no card
        settings=config.model.settings,
        weights=weights.name,
        sha256=sha256,
        pre=config.pre,
        post=config.post,
        gsd=export.gsd,
        classes=export.classes,
        decision=_UNCALIBRATED if outputs is None else _decision(config, outputs, training_share),
        training=training | ({"selection": export.selection} if export.selection else {}),
        licence=export.licence,
    )
    path = weights.with_suffix(".toml")
    write_card(card, path)
    return path


def _decision(config: ChangeTraining, outputs: Outputs, training_share: float) -> Decision:
    """Fit the card's decision; embeddings that were not trained, or are not there, have no say in it."""
    embedded = config.loss.infonce > 0 and config.model.architecture == "siamese"
    return fit_decision(outputs, training_share, config.data.shifts, cosine=embedded)
