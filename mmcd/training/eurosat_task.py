"""EuroSAT: ten kinds of land from one image, and retrieval of images of the same kind.

The defaults are the linear probe of reference system 3 on colour images. Reference system 2's is 13 bands with
``head.groups``, ``head.texture`` and its optimisers: see ``configs/eurosat.yaml``. An image tells nothing of its place,
so parts cannot be kept apart by place, except of the 13-band form by torchgeo's lists of longitudes.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcd.data.eurosat import EuroSatImages
from mmcd.data.eurosat_files import CLASSES, Form, Split, index_eurosat
from mmcd.models.probe import retrieve
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.downstream import DownstreamOptimiser, Outcome, RunPlace
from mmcd.training.probe import Judge, run_probe
from mmcd.training.probe_config import ProbeConfig, ProbeData
from mmcd.training.probe_features import ProbeImages, Rows

QUERIES, QUERY_SEED, DEPTHS = 50, 42, (20, 100)
"""Retrieval as in reference system 3: how many images are asked for, drawn how, and how many are found for each."""


class EuroSatData(ProbeData):
    """Which images.

    Attributes:
        source: Name of the data set.
        images: Colour or all 13 bands; whichever is there when left out, colour first.
        split: The published lists; torchgeo's lists of longitudes; or drawn class by class as in reference system 2.
    """

    source: Literal["eurosat"] = "eurosat"
    images: Form | None = None
    split: Split = "published"


class EuroSatOptimiser(DownstreamOptimiser):
    """Adam whose rate is cut after 60 and 80 epochs."""

    schedule: Literal["constant", "multistep", "exponential"] = "multistep"


class EuroSatConfig(ProbeConfig):
    """EuroSAT's task.

    Attributes:
        data: Images.
        optimiser: Optimiser.
    """

    name: str = "eurosat"
    data: EuroSatData
    optimiser: EuroSatOptimiser = EuroSatOptimiser()


def run_eurosat(config: EuroSatConfig, seed: int, place: RunPlace) -> Outcome:
    """Train a classifier on the train part and return its figures on the test part.

    Figures: ``accuracy``, ``balanced_accuracy`` (mean of the classes' accuracies), and of the retrieval among the test
    images ``precision@20``, ``recall@20``, ``precision@100``, ``recall@100``; NaN where there are too few images.

    Raises:
        DataError: The data set is not as published.
        MmcdError: As `mmcd.training.probe.run_probe`.
    """
    index = index_eurosat(config.data.root, config.data.images, config.data.split)
    parts: dict[str, ProbeImages] = {
        part: EuroSatImages(files, index.labels[part], index.form, config.data.scaling)
        for part, files in index.files.items()
    }
    judge = Judge(len(CLASSES), F.cross_entropy, class_figures, "accuracy")
    probed = run_probe(config, judge, parts, seed, place)
    matrix = _matrix(probed.answers, probed.rows.labels)
    return Outcome(
        class_figures(probed.answers, probed.rows.labels) | retrieval_figures(probed.rows),
        probed.weights,
        {part: len(images) for part, images in parts.items()},
        f"images of the test part, {'colour' if index.form == 'rgb' else '13 bands'}, {index.unit}",
        {
            "confusion": {
                "classes": list(CLASSES),
                "rows_are": "labels",
                "counts": matrix.counts.tolist(),
            },
            "class_accuracy": dict(zip(CLASSES, (matrix.hits / matrix.labelled).tolist(), strict=True)),
            "features": probed.how,
        },
        index.warnings,
    )


def class_figures(answers: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy and balanced accuracy of answers (N, classes) to labels (N,); every class has to occur."""
    matrix = _matrix(answers, labels)
    return {"accuracy": matrix.accuracy, "balanced_accuracy": float((matrix.hits / matrix.labelled).mean())}


def _matrix(answers: Tensor, labels: Tensor) -> ConfusionMatrix:
    return ConfusionMatrix.of(labels.numpy(), answers.argmax(dim=1).numpy(), answers.shape[1])


def retrieval_figures(rows: Rows) -> dict[str, float]:
    """Return precision and recall of retrieval among the images of a part, of features averaged over groups."""
    generator = torch.Generator().manual_seed(QUERY_SEED)
    queries = torch.randperm(len(rows), generator=generator)[:QUERIES]
    figures: dict[str, float] = {}
    for depth in DEPTHS:
        precision, recall = retrieve(rows.features.mean(dim=1), rows.labels, queries, depth)
        figures |= {f"precision@{depth}": precision, f"recall@{depth}": recall}
    return figures
