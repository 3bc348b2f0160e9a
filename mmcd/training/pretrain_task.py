"""Pretraining without labels: a step of MoCo, MoCo+TP, SeCo, TeCo, CACo, SACo and SACo+ on whole batches of series.

What a step of each method is stands in `mmcd.losses.pretraining`. Views are made here, on the device of the batch and
in single precision; everything random in a step depends on seed, number of the step and process only, so that a
resumed run sees what an uninterrupted one would have seen.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mmcd.data.band_groups import group_places, select_groups, vegetation_indices
from mmcd.data.seasonal import SeasonalSample
from mmcd.data.seasonal_views import Views, band_views, season_views
from mmcd.data.texture import band_texture, texture_images
from mmcd.errors import DataError
from mmcd.losses.pretraining import caco_loss, moco_loss, own_keys, saco_loss, seco_loss, teco_loss
from mmcd.models.moco import MomentumEncoder, group_mean, pooled_trunk, trunk_width
from mmcd.samplers import ChangeAwareSampler
from mmcd.training.change_labels import ChangeLabels, change_distances
from mmcd.training.pretrain_config import PretrainTraining

logger = logging.getLogger(__name__)

CHANNELS = 3
"""Bands that the trunk sees at once: colours, or one band group."""

_PERIOD, _DROP = 1_000_003, 0.1

Figures = dict[str, Tensor]


class PretrainTask(L.LightningModule):
    """Trains a query encoder against its slow copy.

    Args:
        config: The run's configuration.
        bands: Names of the bands of the series, in order.
        places: Number of places, whose change CACo estimates.

    Attributes:
        net: Encoders, heads and queues.
        beliefs: CACo's running distances and labels of change; None for all other methods.
        sampler: Told of the estimate of change after every epoch; None draws all places alike.
        history: Figures of every finished epoch, by name.

    Raises:
        DataError: The series lack a band of a group.
        ConfigError: A size of the momentum encoder is out of its range, or there are no such groups.
    """

    def __init__(self, config: PretrainTraining, bands: Sequence[str], places: int) -> None:
        super().__init__()
        self.config, self._bands = config, tuple(bands)
        trunk = pooled_trunk(config.trunk, CHANNELS)
        net = MomentumEncoder(trunk, trunk_width(config.trunk), config.settings)
        self.net: MomentumEncoder = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.beliefs = ChangeLabels(places) if config.method == "caco" else None
        self.sampler: ChangeAwareSampler | None = None
        self.history: list[dict[str, float]] = []
        self._sums: Figures = {}
        self._unfitted = False
        self._places, self._textures = _group_places(config, self._bands) if config.grouped else (None, None)

    def training_step(self, batch: SeasonalSample, batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        with torch.autocast(self.device.type, enabled=False):
            views = self.views(batch["images"])
        if self.config.grouped:
            loss, figures = self._saco(views)
        elif len(views.keys) == 1:
            loss, figures = self._moco(views)
        else:
            loss, figures = self._seasons(views, batch)
        self._count({"loss": loss.detach(), **figures})
        self.log("train/step_loss", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def views(self, images: Tensor) -> Views:
        """Return what a step embeds: images (N, 3, S, S), or the groups of each, (N, G, 3, S, S).

        Args:
            images: Acquisitions of a batch as stored, shape (N, T, C, H, W).
        """
        config, generator = self.config, self._generator()
        if not config.grouped:
            return season_views(images, config.method, generator, config.views, self._bands, config.data.stretch)
        seen = band_views(images, generator, config.band_views)
        return Views(self._grouped(seen.query), tuple(self._grouped(key) for key in seen.keys))

    def _grouped(self, view: Tensor) -> Tensor:
        """Return the band groups of a view, then its textures, shape (N, G, 3, S, S)."""
        parts = []
        if self._places is not None:
            parts.append(select_groups(view, self._places))
        if self.config.groups.vegetation:
            parts.append(vegetation_indices(view, self._bands))
        if self._textures is not None:
            used, places = torch.unique(self._textures, return_inverse=True)  # not of bands that no group has
            parts.append(texture_images(band_texture(view[:, used]), places))
        return torch.cat(parts, dim=1)

    def _generator(self) -> torch.Generator:
        """Return the source of all randomness of this step, on the CPU."""
        trained, rank = (self.trainer.global_step, self.trainer.global_rank) if self._trainer is not None else (0, 0)
        seeds = np.random.SeedSequence([self.config.seed, trained, rank]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))

    def _moco(self, views: Views) -> tuple[Tensor, Figures]:
        net = self.net
        queries, keys = net.embed_query(views.query), net.embed_keys(*views.keys)
        queue, first = net.negatives()[0], net.first_row(len(views.query))
        loss = moco_loss(queries[0], keys[0, 0], queue, self.config.temperature, first, self.config.loss.denominator)
        net.enqueue(keys[:, 0])
        return loss, _agreement(queries[0], keys[0, 0], queue, first)

    def _seasons(self, views: Views, batch: SeasonalSample) -> tuple[Tensor, Figures]:
        """Return the loss of SeCo, TeCo or CACo, summed over spaces."""
        net, rows, temperature = self.net, len(views.query), self.config.temperature
        first, beliefs = net.first_row(rows), self.beliefs
        queries = net.embed_query(views.query)
        keys = net.embed_keys(*views.keys, *([views.query] if beliefs is not None else []))
        queue, shown = net.negatives(), keys[:, : len(views.keys)]
        if beliefs is not None:
            places, halves = batch["place"], batch["half"]
            losses = caco_loss(queries, shown, queue, beliefs.changed(places, halves), temperature, first)
            own = slice(first, first + rows)
            beliefs.update(places, halves, *change_distances(keys[1, -1, own], keys[1, 1, own]))
        else:
            loss_of = teco_loss if self.config.method == "teco" else seco_loss
            losses = loss_of(queries, shown, queue, temperature, first)
        net.enqueue(own_keys(shown))
        figures = {f"space_{number}": loss.detach() for number, loss in enumerate(losses)}
        return losses.sum(), figures | _agreement(queries[0], keys[0, 0], queue[0], first)

    def _saco(self, views: Views) -> tuple[Tensor, Figures]:
        net, first, options = self.net, self.net.first_row(len(views.query)), self.config.loss
        groups = net.embed_groups(views.query)[0]
        queries = group_mean(groups)
        keys, queue = net.embed_keys(*views.keys)[0], net.negatives()[0]
        contrast, consistency = saco_loss(
            queries, keys, queue, groups, self.config.temperature, first, options.denominator, options.consistency
        )
        net.enqueue(keys[None, 0])
        figures = {"contrast": contrast.detach(), "consistency": consistency.detach()}
        return contrast + consistency, figures | _agreement(queries, keys[0], queue, first)

    def _count(self, figures: Figures) -> None:
        """Add the figures of a step to those of the epoch."""
        for name, value in (figures | {"steps": torch.ones((), device=self.device)}).items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + value.float()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Set the learning rate: a function of the step, so that nothing of it need be kept."""
        part = self.trainer.global_step / max(self.trainer.estimated_stepping_batches, 1)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.config.optimising.lr * rate_at(self.config, part)

    def on_train_epoch_end(self) -> None:
        """Log the figures of the epoch, and fit CACo's two classes of change."""
        names = sorted(self._sums)
        sums = self.trainer.strategy.reduce(torch.stack([self._sums[name] for name in names]), reduce_op="sum")
        total = dict(zip(names, sums.tolist(), strict=True))
        figures = {name: value / total["steps"] for name, value in total.items() if name != "steps"}
        figures["lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.beliefs is not None:
            figures |= self._fit(self.beliefs)
        self.log_dict({f"train/{name}": value for name, value in figures.items()})
        self.history.append({"epoch": float(self.current_epoch), **figures})
        self._sums = {}

    def _fit(self, beliefs: ChangeLabels) -> dict[str, float]:
        """Label the places by a mixture; where it finds one class only, all labels stay as they are."""
        if self.sampler is not None:
            self.sampler.set_estimate(beliefs.running[..., 2].cpu().numpy())
        try:
            mixture = beliefs.fit(self.config.seed)
        except DataError as error:
            if not self._unfitted:
                logger.warning("Epoch %d: %s The labels stay as they were.", self.current_epoch + 1, error)
            self._unfitted = True
            return {}
        self._unfitted = False
        return {
            "changed_share": mixture.changed / mixture.seen,
            "ratio_unchanged": mixture.means[0],
            "ratio_changed": mixture.means[1],
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD or Adam over the query encoder and its heads."""
        choice = self.config.optimising
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if choice.kind == "adam":
            return torch.optim.Adam(learning, lr=choice.lr, weight_decay=choice.weight_decay)
        momentum = self.config.optimiser.momentum
        return torch.optim.SGD(learning, lr=choice.lr, momentum=momentum, weight_decay=choice.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beyond weights, queues, labels and optimiser."""
        sums = {name: value.cpu() for name, value in self._sums.items()}
        checkpoint["pretraining"] = {"history": self.history, "sums": sums, "unfitted": self._unfitted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["pretraining"]
        self.history, self._unfitted = list(state["history"]), state["unfitted"]
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}


def rate_at(config: PretrainTraining, part: float) -> float:
    """Return the learning rate over its highest.

    Args:
        config: The run's configuration.
        part: Part of the training that is done, in [0, 1].
    """
    options = config.optimiser
    if part < options.warmup:
        return max(part, 1e-3) / options.warmup
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (part - options.warmup) / (1 - options.warmup)))
    return _DROP ** sum(part >= drop for drop in config.optimising.drops)


def _group_places(config: PretrainTraining, bands: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
    """Return where the bands of the groups and of the textures lie, shape (G, 3) each; None where there are none."""
    groups, textures = config.groups.bands, config.groups.texture_groups(config.method)
    if config.groups.vegetation:
        group_places({"vegetation": ("B8", "B4", "B2")}, bands)  # says now what is missing
    return tuple(group_places(each, bands) if each else None for each in (groups, textures))  # type: ignore[return-value]


@torch.no_grad()
def _agreement(queries: Tensor, keys: Tensor, queue: Tensor, first: int) -> Figures:
    """Return how alike queries and their keys are, and how often a key is nearer than all of the queue.

    Args:
        queries: Unit vectors, shape (N, D).
        keys: Those of all processes, shape (M, D).
        queue: Shape (D, K).
        first: Where the queries' keys begin.
    """
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys[first : first + len(queries)]).sum(dim=1)
        nearest = (queries @ queue).amax(dim=1)
    return {"similarity": own.mean(), "accuracy": (own > nearest).float().mean()}
