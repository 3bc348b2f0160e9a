"""Momentum contrast: a query encoder, its slow copy, heads for several embedding spaces, and a queue for each.

He et al. 2020 (MoCo), Chen et al. 2020 (MoCo v2), Mañas et al. 2021 (embedding spaces). What a training step of each
method does with it is written in `mmcd.losses.pretraining`. S is the number of spaces, V of views, N of rows on this
process, M of rows on all processes, K of keys in a queue and D of dimensions.

Names and shapes of the state dict are those of reference system 3: ``encoder_q.4.0.conv1.weight``,
``heads_q.2.0.weight``, ``queue`` (S, D, K). ``encoder_q`` alone loads its public trunks as they are.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet34, resnet50

from mmcd.errors import ConfigError, ModelError
from mmcd.models.trunks import FeatureTrunk, build_stages, scales_of

Method = Literal["moco", "moco_tp", "seco", "teco", "caco", "saco", "saco_plus"]

_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


@dataclass(frozen=True)
class MomentumSettings:
    """Sizes of a momentum encoder; the defaults are MoCo's in reference system 3.

    Attributes:
        subspaces: Embedding spaces, each with a head and a queue of its own.
        dim: Dimensions of an embedding.
        hidden: Widths of a head's hidden layers; None is one as wide as the features.
        queue: Keys that a queue holds, a multiple of the rows of a batch on all processes.
        momentum: Share of the key encoder that a step keeps.
        shuffle: Exchange rows between processes before the keys are embedded, so that batch norm cannot tell a row's
            own key by the statistics of its batch. Needless for a trunk without batch norm.
        seed: Of the first keys and of the exchanges; the same on every process.
    """

    subspaces: int = 1
    dim: int = 128
    hidden: tuple[int, ...] | None = None
    queue: int = 16384
    momentum: float = 0.999
    shuffle: bool = True
    seed: int = 0


_SEASONS = MomentumSettings(subspaces=3)
_GROUPS = MomentumSettings(dim=256, hidden=(1024, 512), queue=384)

METHODS: dict[Method, MomentumSettings] = {
    "moco": MomentumSettings(),
    "moco_tp": MomentumSettings(),
    "seco": _SEASONS,
    "teco": _SEASONS,
    "caco": _SEASONS,
    "saco": _GROUPS,
    "saco_plus": _GROUPS,
}
"""What each method was published with."""


def pooled_trunk(trunk: FeatureTrunk, channels: int, norm: Literal["batch", "group"] = "batch") -> nn.Sequential:
    """Return an untrained trunk that gives one vector an image.

    A ResNet is torchvision's without its last layer, numbered as the public weights of reference system 3 are.

    Args:
        trunk: Which body.
        channels: Bands of an image.
        norm: Batch norm, or group norm (32 groups), which needs no exchange of rows between processes; a Swin or
            ConvNeXt has layer norm, whatever is asked for.

    Raises:
        ModelError: There is no such trunk.
    """
    scales_of(trunk)
    if trunk not in _RESNETS:
        return nn.Sequential(*build_stages(trunk, channels).values(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body = _RESNETS[trunk](weights=None, norm_layer=_group_norm if norm == "group" else None)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*list(body.children())[:-1], nn.Flatten())


def trunk_width(trunk: FeatureTrunk) -> int:
    """Return the features that a pooled trunk gives."""
    return scales_of(trunk).channels[5]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _head(features: int, settings: MomentumSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in settings.hidden if settings.hidden is not None else (features,):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, settings.dim))


class MomentumEncoder(nn.Module):
    """Query and momentum encoder with heads and queues.

    Under several processes the keys of all of them are gathered, so every process has the same queues. Weights, keys,
    pointers and the count of steps are in the state dict, so a resumed run goes on as if it had not stopped.

    Args:
        encoder: Trunk of the queries, images (N, C, H, W) to features (N, F); its copy becomes the trunk of the keys.
        features: How many features it gives.
        settings: Sizes.

    Attributes:
        encoder_q: Trunk of the queries, what pretraining is for.
        encoder_k: Trunk of the keys. Its batch statistics are its own, only parameters follow the query encoder.
        heads_q: Head of every space.
        heads_k: Heads of the keys.
        queue: Unit vectors, shape (S, D, K), float32; random until the first keys came around.
        queue_ptr: Where the next key goes, shape (S, 1), int64.
        steps: How often keys were embedded in training, int64.

    Raises:
        ConfigError: A setting is out of its range.
    """

    queue: Tensor
    queue_ptr: Tensor
    steps: Tensor

    def __init__(self, encoder: nn.Module, features: int, settings: MomentumSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or MomentumSettings()
        _check(settings)
        self.features = features
        self.encoder_q = encoder
        self.heads_q = nn.ModuleList(_head(features, settings) for _ in range(settings.subspaces))
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.heads_k = copy.deepcopy(self.heads_q).requires_grad_(False)
        generator = torch.Generator().manual_seed(settings.seed)
        first = torch.randn(settings.subspaces, settings.dim, settings.queue, generator=generator)
        self.register_buffer("queue", F.normalize(first, dim=1))
        self.register_buffer("queue_ptr", torch.zeros(settings.subspaces, 1, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def embed_query(self, images: Tensor) -> Tensor:
        """Return the queries' unit vectors in every space, shape (S, N, D), float32.

        Args:
            images: Normalised images, shape (N, C, H, W), or the groups of each, shape (N, G, C, H, W).
        """
        return group_mean(self.embed_groups(images))

    def embed_groups(self, images: Tensor) -> Tensor:
        """Return the queries' embeddings of every band group before their mean is taken, shape (S, N, G, D).

        Groups go through the trunk as one batch, so that batch norm has one statistic of all, as it has later.

        Args:
            images: As in `embed_query`; without groups G is 1.
        """
        return self._project(self.encoder_q, self.heads_q, images)

    @torch.no_grad()
    def embed_keys(self, *views: Tensor) -> Tensor:
        """Return the keys' unit vectors, of the rows of all processes, without a gradient.

        In training the key encoder follows the query encoder first, once for all views of a step.

        Args:
            views: Images like a query's, row by row of the same places; as many rows on every process.

        Returns:
            Embedding of every view in every space, shape (S, V, M, D), float32. This process's rows are those from
            `first_row` on.
        """
        if self.training:
            self._follow()
        if self.training and self.settings.shuffle and _processes() > 1:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + int(self.steps))
            return torch.stack([self._exchanged(view, generator) for view in views], dim=1)
        own = torch.stack([self._unit_keys(view) for view in views], dim=1)  # (S, V, N, D)
        return gather_rows(own.movedim(2, 0)).movedim(0, 2)

    def first_row(self, rows: int) -> int:
        """Return where the rows of this process begin among those of all.

        Args:
            rows: Rows of this process.
        """
        return distributed.get_rank() * rows if _processes() > 1 else 0

    def negatives(self) -> Tensor:
        """Return a copy of the queues, shape (S, D, K), which keys that are enqueued before `backward` leave alone."""
        return self.queue.clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put keys in the place of the oldest ones; a queue is a ring.

        Args:
            keys: Unit vectors by space of the rows of all processes, shape (S, M, D).

        Raises:
            ConfigError: The queue is not a multiple of M.
        """
        rows = keys.shape[1]
        self.check_batch(rows)
        places = (self.queue_ptr + torch.arange(rows, device=keys.device)) % self.settings.queue  # (S, M)
        into = places.unsqueeze(1).expand(-1, self.settings.dim, -1)
        self.queue.scatter_(2, into, keys.movedim(1, 2).to(self.queue))
        self.queue_ptr.add_(rows).remainder_(self.settings.queue)

    def check_batch(self, rows: int) -> None:
        """Refuse batches that do not fill the queue evenly: keys of one age would leave it apart.

        Args:
            rows: Rows of a batch, of all processes together.

        Raises:
            ConfigError: The queue is not a multiple of it.
        """
        length = self.settings.queue
        if rows < 1 or length % rows:
            fitting = max(rows, length // max(rows, 1) * rows)
            raise ConfigError(
                f"The queue of {length:,} keys is not a multiple of the {rows:,} rows of a batch on all processes.",
                f"Choose a queue of {fitting:,} or another batch size, and leave out a smaller last batch.",
            )

    def _follow(self) -> None:
        """Move the key encoder towards the query encoder."""
        for key, query in zip(_parameters(self, "k"), _parameters(self, "q"), strict=True):
            key.lerp_(query.to(key.dtype), 1 - self.settings.momentum)
        self.steps.add_(1)

    def _project(self, encoder: nn.Module, heads: nn.ModuleList, images: Tensor) -> Tensor:
        groups = images if images.ndim == 5 else images.unsqueeze(1)  # (N, G, C, H, W)
        features = encoder(groups.flatten(0, 1))
        if features.shape != (groups.shape[0] * groups.shape[1], self.features):
            raise ModelError(
                f"The trunk gives {tuple(features.shape[1:])} for an image, not the {self.features} features of the "
                "heads.",
                "Let it pool and flatten its features, and say how many they are.",
            )
        embeddings = torch.stack([head(features) for head in heads])  # (S, N G, D)
        return embeddings.reshape(len(heads), *groups.shape[:2], -1)

    def _unit_keys(self, images: Tensor) -> Tensor:
        return group_mean(self._project(self.encoder_k, self.heads_k, images))  # (S, N, D)

    def _exchanged(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the keys of all processes, shape (S, M, D), embedded in batches mixed from all processes."""
        every = gather_rows(images)
        order = torch.randperm(len(every), generator=generator).to(images.device)
        first = self.first_row(len(images))
        mixed = self._unit_keys(every[order[first : first + len(images)]])
        keys = gather_rows(mixed.movedim(1, 0))
        return torch.empty_like(keys).index_copy_(0, order, keys).movedim(0, 1)


def group_mean(groups: Tensor) -> Tensor:
    """Return the unit vector of the mean over groups.

    Args:
        groups: Embeddings, shape (..., G, D), as `MomentumEncoder.embed_groups` returns them.

    Returns:
        Shape (..., D), float32.
    """
    return F.normalize(groups.float().mean(dim=-2), dim=-1)


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, process after process, without a gradient; the rows themselves if alone.

    Args:
        rows: As many rows of one shape on every process.
    """
    if _processes() == 1:
        return rows
    rows = rows.contiguous()
    every = [torch.empty_like(rows) for _ in range(_processes())]
    distributed.all_gather(every, rows)
    return torch.cat(every)


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _parameters(model: MomentumEncoder, side: Literal["q", "k"]) -> Iterator[nn.Parameter]:
    modules: Sequence[nn.Module] = (model.get_submodule(f"encoder_{side}"), model.get_submodule(f"heads_{side}"))
    for module in modules:
        yield from module.parameters()


def _check(settings: MomentumSettings) -> None:
    if min(settings.subspaces, settings.dim, settings.queue, *(settings.hidden or (1,))) < 1:
        raise ConfigError(
            "A momentum encoder needs at least one space, dimension and key in the queue.", "Choose positive numbers."
        )
    if not 0 <= settings.momentum <= 1:
        raise ConfigError(f"A momentum of {settings.momentum:g} is no share.", "Choose from 0 to 1, such as 0.999.")
