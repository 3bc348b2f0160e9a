"""What a trunk's features are asked: a linear classifier over groups of bands and textures, and retrieval."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mean = Literal["logits", "probabilities"]


class GroupClassifier(nn.Module):
    """One linear layer for all groups of an image, whose answers are averaged.

    The code of reference system 2 averages the probabilities of the groups and takes their cross-entropy as if they
    were logits, so that no prediction can become sure; ``mean="probabilities"`` does the same. The default averages
    logits.

    Args:
        features: Length of a group's vector.
        textures: Length of the vector that every group's is joined with.
        classes: Classes.
        dropout: Share of the input that is left out in training.
        mean: What is averaged over groups.
    """

    def __init__(
        self,
        features: int,
        textures: int,
        classes: int,
        dropout: float = 0.0,
        mean: Mean = "logits",
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features + textures, classes)
        self.mean = mean

    def forward(self, features: Tensor, textures: Tensor) -> Tensor:
        """Return one answer a class, for a cross-entropy, shape (N, classes).

        Args:
            features: Shape (N, G, F).
            textures: Shape (N, T); T may be 0.
        """
        joined = torch.cat([features, textures.unsqueeze(1).expand(-1, features.shape[1], -1)], dim=2)
        answers: Tensor = self.linear(self.dropout(joined))  # (N, G, classes)
        return (answers if self.mean == "logits" else answers.softmax(dim=2)).mean(dim=1)


def retrieve(features: Tensor, labels: Tensor, queries: Tensor, depth: int) -> tuple[float, float]:
    """Return precision and recall of the nearest images by cosine, averaged over queries.

    A query is not among what is found for it. NaN where fewer than ``depth`` other images exist.

    Args:
        features: Shape (N, F).
        labels: Classes, shape (N,), int64.
        queries: Rows that are asked for, shape (Q,), int64.
        depth: How many images are found for each.

    Returns:
        Share of the found images that are of the query's class, and share of the other images of its class that are
        found; queries without another image of their class have no recall and are left out of it.
    """
    if depth > len(features) - 1:
        return float("nan"), float("nan")
    units = F.normalize(features.float(), dim=1)
    near = units[queries] @ units.T  # (Q, N)
    near[torch.arange(len(queries)), queries] = -torch.inf
    found = near.topk(depth, dim=1).indices
    hits = (labels[found] == labels[queries, None]).sum(dim=1).double()
    others = (labels[None] == labels[queries, None]).sum(dim=1).double() - 1
    known = others > 0
    recall = (hits[known] / others[known]).mean().item() if known.any() else float("nan")
    return (hits / depth).mean().item(), recall
