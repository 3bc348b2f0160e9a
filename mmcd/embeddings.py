"""Embeddings of patch pairs laid out on a plane, and what can be trusted of the picture. Numpy and its kin, no torch.

Layouts are seeded: the same vectors give the same picture. Heavy libraries are imported where they are used.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd.config import Config
from mmcd.embedding_table import EmbeddingTable
from mmcd.errors import InputError
from mmcd.progress import Progress, silent

Method = Literal["pca", "umap", "tsne"]
METHODS: tuple[Method, ...] = get_args(Method)
What = Literal["sar", "optical", "both", "difference", "joint", "sar_features"]
WHATS: tuple[What, ...] = get_args(What)

CHANGED_SHARE = 0.5
"""Share of labelled pixels from which a patch pair counts as changed; the mean score is such a share as well."""

MEASURE_SAMPLE = 2_000
"""Points at most that trustworthiness and silhouette look at: both grow with the square of their number."""

FEWEST = 10
"""Patch pairs below which a layout means nothing."""

TRUST_NEIGHBOURS = 15
_LENGTH_TELLS: tuple[What, ...] = ("difference", "sar_features")
"""Vectors that are no unit vectors: how long they are tells as much as where they point."""

_TSNE_STEPS = (250, 500)
_TOLD_EVERY = 25

Points = NDArray[np.float32]


class Layout(Config):
    """How vectors are laid out.

    Attributes:
        method: PCA shows the widest spread, UMAP (McInnes et al. 2018) and t-SNE (van der Maaten and Hinton 2008) keep
            neighbours together.
        what: Vectors of the image after (``sar``), before (``optical``), ``both`` side by side in one vector, their
            ``difference``, ``joint``: each pair as two points, or what the reference projects its SAR vectors from.
        neighbors: Neighbours that UMAP keeps together.
        min_dist: Smallest distance of UMAP's points.
        perplexity: Neighbours that t-SNE counts on.
        seed: Seed of every random step.
    """

    method: Method = "umap"
    what: What = "sar"
    neighbors: int = Field(15, ge=2, le=200)
    min_dist: float = Field(0.1, ge=0, lt=1)
    perplexity: float = Field(30, ge=2, le=200)
    seed: int = Field(42, ge=0)


@dataclass(frozen=True)
class Preset:
    """A picture to start from.

    Attributes:
        title: Its name, for people.
        what: Which vectors.
        help: What it shows.
    """

    title: str
    what: What
    help: str


PRESETS = (
    Preset(
        "SAR encoder features",
        "sar_features",
        "First plot of the reference system: what its SAR encoder sees, before the projection, one point a pair.",
    ),
    Preset(
        "Joint projection space",
        "joint",
        "Second plot of the reference system: both images of every pair in the space where the model compares them.",
    ),
)
"""The two plots of reference system 0; a model that keeps no features shows its SAR vectors in the first."""


def stacked_vectors(table: EmbeddingTable, what: What) -> tuple[Points, NDArray[np.int32], NDArray[np.int8]]:
    """Return the vectors to lay out, with the pair and the branch (0 optical, 1 SAR) of each.

    Args:
        table: The patch pairs.
        what: See `Layout`; without features of the encoder the SAR branch's unit vectors stand for them.

    Returns:
        Vectors of shape (M, D), float32; pairs, shape (M,); branches, shape (M,). M is twice the pairs for ``joint``.
    """
    optical, sar = (table.vectors[name].astype(np.float32) for name in ("optical", "sar"))
    pairs = np.arange(len(table), dtype=np.int32)
    branch = np.full(len(table), 0 if what == "optical" else 1, np.int8)
    if what == "joint":
        return np.concatenate([optical, sar]), np.tile(pairs, 2), np.repeat(np.array([0, 1], np.int8), len(table))
    features = table.vectors.get("sar_features")
    chosen = {
        "optical": optical,
        "sar": sar,
        "both": np.concatenate([optical, sar], axis=1),
        "difference": sar - optical,
        "sar_features": sar if features is None else features.astype(np.float32),
    }
    return chosen[what], pairs, branch


def lay_out(vectors: Points, layout: Layout, progress: Progress = silent) -> Points:
    """Return two coordinates for each vector, shape (M, 2), float32.

    Args:
        vectors: Shape (M, D), float32.
        layout: How.
        progress: Told of the steps; may raise to stop.

    Raises:
        InputError: There are too few vectors.
        Cancelled: The progress callback asked to stop.
    """
    if len(vectors) < FEWEST:
        raise InputError(
            f"{len(vectors)} patch pairs are too few to lay out, {FEWEST} are needed.", "Take a larger region."
        )
    method = {"pca": _pca, "umap": _umap, "tsne": _tsne}[layout.method]
    return np.ascontiguousarray(method(vectors, layout, progress), np.float32)


def _pca(vectors: Points, layout: Layout, progress: Progress) -> Any:
    from sklearn.decomposition import PCA

    progress("lay out by PCA", 0, 1)
    found = PCA(n_components=2, svd_solver="full").fit_transform(vectors.astype(np.float64))
    progress("lay out by PCA", 1, 1)
    return found


def _umap(vectors: Points, layout: Layout, progress: Progress) -> Any:
    progress("load UMAP, slow the first time", 0, 1)
    from umap import UMAP

    progress("find neighbours", 0, 1)
    model = UMAP(
        n_neighbors=int(np.clip(min(layout.neighbors, len(vectors) // 2), 2, None)),
        min_dist=layout.min_dist,
        metric="euclidean",  # of unit vectors it orders neighbours as the cosine does
        random_state=layout.seed,
        n_jobs=1,  # a seed holds for one thread only
        tqdm_kwds={"file": _Told(progress), "disable": False, "bar_format": "{n} {total}", "desc": "", "leave": False},
    )
    return model.fit_transform(vectors)


class _Told:
    """Takes a progress bar's text, ``step steps``, and hands the numbers on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def write(self, text: str) -> None:
        """Hand on what holds two whole numbers."""
        words = text.split()
        if len(words) == 2 and all(word.isdecimal() for word in words):
            self._progress("lay out by UMAP", int(words[0]), int(words[1]))

    def flush(self) -> None:
        """Do nothing: nothing is kept."""


def _tsne(vectors: Points, layout: Layout, progress: Progress) -> Any:
    from openTSNE import TSNE

    early, late = _TSNE_STEPS
    done = 0

    def told(iteration: int, error: float, embedding: Any) -> bool:
        nonlocal done
        done += _TOLD_EVERY
        progress("lay out by t-SNE", min(done, early + late), early + late)
        return False

    progress("find neighbours", 0, 1)
    model = TSNE(
        perplexity=float(np.clip(min(layout.perplexity, (len(vectors) - 1) // 3), 2, None)),
        initialization="pca",
        early_exaggeration_iter=early,
        n_iter=late,
        random_state=layout.seed,
        n_jobs=1,
        callbacks=[told],
        callbacks_every_iters=_TOLD_EVERY,
    )
    return np.asarray(model.fit(vectors.astype(np.float64)))


def neighbours(vectors: Points, point: int, count: int) -> tuple[NDArray[np.int64], Points]:
    """Return the vectors that are nearest to one of them by cosine, nearest first, without itself.

    Args:
        vectors: Shape (M, D).
        point: Which one.
        count: Number of neighbours at most.

    Returns:
        Their numbers, and their cosine with the point, both of shape (count,).
    """
    length = np.linalg.norm(vectors, axis=1)
    cosine = vectors @ vectors[point] / np.maximum(length * length[point], 1e-12)
    cosine[point] = -np.inf
    count = min(count, len(vectors) - 1)
    nearest = np.argsort(-cosine, kind="stable")[:count]
    return nearest, cosine[nearest].astype(np.float32)


@dataclass(frozen=True)
class Measures:
    """What a layout keeps of the vectors, and how the vectors themselves fall apart.

    Attributes:
        trustworthiness: In [0, 1]: how far points that are near on the plane are near among the vectors too (Venna and
            Kaski 2001); None of too few points.
        neighbors: Neighbours that it looks at.
        sample: Points that it looks at.
        total: Points in all.
        events: For each event the number of labelled pairs that were looked at, the silhouette (Rousseeuw 1987) of
            changed against unchanged pairs in it, and that of its pairs against the other events; None where there is
            only one group. Distances are cosine distances of unit vectors, and those in space, which the layouts keep
            too, of vectors whose length tells something.
    """

    trustworthiness: float | None
    neighbors: int
    sample: int
    total: int
    events: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as JSON values."""
        return vars(self) | {"events": list(self.events)}


def measure(table: EmbeddingTable, layout: Layout, points: Points) -> Measures:
    """Measure a layout on a seeded sample of its points.

    Args:
        table: The patch pairs.
        layout: How they were laid out.
        points: Their coordinates, shape (M, 2).
    """
    vectors, pair, _ = stacked_vectors(table, layout.what)
    chosen = _sample(len(vectors), layout.seed)
    near = min(TRUST_NEIGHBOURS, (len(chosen) - 1) // 2)
    metric = "euclidean" if layout.what in _LENGTH_TELLS else "cosine"
    events = _silhouettes(vectors[chosen], table.events[pair[chosen]], table.label[pair[chosen]], metric)
    return Measures(_trust(vectors[chosen], points[chosen], near, metric), near, len(chosen), len(vectors), events)


def _trust(vectors: Points, points: Points, near: int, metric: str) -> float | None:
    from sklearn.manifold import trustworthiness

    if near < 1:
        return None
    return round(float(trustworthiness(vectors, points, n_neighbors=near, metric=metric)), 4)


def _silhouettes(
    vectors: Points, events: NDArray[np.str_], label: NDArray[np.float32], metric: str
) -> tuple[dict[str, Any], ...]:
    apart = _silhouette(vectors, events, metric)
    found = []
    for event in np.unique(events):
        of_event = events == event
        known = of_event & np.isfinite(label)
        by_change = _silhouette(vectors[known], label[known] >= CHANGED_SHARE, metric)
        found.append(
            {
                "event": str(event),
                "pairs": int(of_event.sum()),
                "labelled": int(known.sum()),
                "change": None if by_change is None else round(float(by_change.mean()), 4),
                "event_apart": None if apart is None else round(float(apart[of_event].mean()), 4),
            }
        )
    return tuple(found)


def _silhouette(vectors: Points, groups: NDArray[Any], metric: str) -> Points | None:
    """Return the silhouette of each vector, shape (M,); None unless there are two groups, one of them of two."""
    from sklearn.metrics import silhouette_samples

    if not 2 <= len(np.unique(groups)) < len(groups):
        return None
    return np.asarray(silhouette_samples(vectors, groups, metric=metric), np.float32)


def _sample(total: int, seed: int) -> NDArray[np.int64]:
    if total <= MEASURE_SAMPLE:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, MEASURE_SAMPLE, replace=False))


def misclassified(table: EmbeddingTable, threshold: float) -> NDArray[np.bool_]:
    """Return which labelled pairs the score puts on the wrong side, shape (N,); never one without a label.

    A pair is changed when `CHANGED_SHARE` of its labelled pixels are, and reported when its mean score reaches the
    threshold.

    Args:
        table: The patch pairs.
        threshold: Probability from which change is reported, in [0, 1].
    """
    wrong = (table.label >= CHANGED_SHARE) != (table.score >= threshold)
    return np.asarray(wrong & table.has_label)
