import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, jaccard_score

from mmcd.errors import DataError
from mmcd.segmentation_metrics import ConfusionMatrix, change_summary, grade_summary, harmonic_mean

NAMES = ("background", "intact", "damaged", "destroyed")


@pytest.fixture
def maps():
    """Labels with unlabelled pixels, and a map that is right in two of three."""
    random = np.random.default_rng(0)
    label = random.choice([0, 1, 2, 3, 255], size=(40, 50), p=[0.6, 0.2, 0.05, 0.1, 0.05]).astype(np.uint8)
    wrong = random.integers(0, 4, label.shape).astype(np.uint8)
    return label, np.where((random.random(label.shape) < 0.67) & (label < 4), label, wrong)


def test_figures_are_scikit_learns(maps):
    label, mapped = maps
    truth, answer = label[label < 4], mapped[label < 4]
    matrix = ConfusionMatrix.of(label, mapped, 4)
    assert matrix.counts.tolist() == confusion_matrix(truth, answer).tolist() and matrix.counts.dtype == np.int64
    assert matrix.accuracy == pytest.approx(accuracy_score(truth, answer))
    assert matrix.iou == pytest.approx(jaccard_score(truth, answer, average=None))
    assert matrix.f1 == pytest.approx(f1_score(truth, answer, average=None))
    assert matrix.kappa == pytest.approx(cohen_kappa_score(truth, answer))


def test_bright_figures_are_scikit_learns(maps):
    label, mapped = maps
    truth, answer = label[label < 4], mapped[label < 4]
    found = grade_summary(ConfusionMatrix.of(label, mapped, 4), NAMES)
    assert found["f1_loc"] == pytest.approx(f1_score(truth > 0, answer > 0))
    on_buildings = f1_score(truth[truth > 0], answer[truth > 0], average=None, labels=[1, 2, 3])
    assert found["f1_clf"] == pytest.approx(3 / (1 / on_buildings).sum())
    assert found["miou"] == pytest.approx(jaccard_score(truth, answer, average="macro")) and not found["absent"]
    binary = change_summary(ConfusionMatrix.of(label, mapped, 4).merged([3]))
    assert binary["kappa"] == pytest.approx(cohen_kappa_score(truth == 3, answer == 3))
    assert binary["f1"] == pytest.approx(f1_score(truth == 3, answer == 3))
    assert binary["iou"] == pytest.approx(jaccard_score(truth == 3, answer == 3))
    assert binary["oa"] == pytest.approx(accuracy_score(truth == 3, answer == 3))


def test_closed_forms():
    label = np.array([0] * 6 + [1] * 2 + [3] * 2)
    mapped = np.array([0] * 5 + [1] + [1, 0] + [3, 1])
    found = grade_summary(ConfusionMatrix.of(label, mapped, 4), NAMES)
    assert found["oa"] == pytest.approx(0.7)
    assert found["iou"]["background"] == pytest.approx(5 / 7) and found["iou"]["intact"] == pytest.approx(1 / 4)
    assert found["iou"]["destroyed"] == pytest.approx(1 / 2) and math.isnan(found["iou"]["damaged"])
    assert found["absent"] == ["damaged"]
    total = 5 / 7 + 1 / 4 + 1 / 2
    assert found["miou"] == pytest.approx(total / 3) and found["miou_absent_zero"] == pytest.approx(total / 4)
    assert found["f1_loc"] == pytest.approx(2 * 3 / (4 + 4))
    # on buildings: intact has one hit, one miss, one false; destroyed one hit, one miss
    assert found["f1_graded"]["intact"] == pytest.approx(1 / 2)
    assert found["f1_graded"]["destroyed"] == pytest.approx(2 / 3)
    assert found["f1_clf"] == pytest.approx(2 / (2 + 3 / 2))


def test_a_class_that_is_mapped_and_not_labelled_counts_as_missed():
    found = grade_summary(ConfusionMatrix.of(np.array([0, 1, 3]), np.array([0, 2, 3]), 4), NAMES)
    assert found["iou"]["damaged"] == 0 and found["absent"] == [] and found["f1_clf"] == 0


def test_matrices_of_tiles_add_up_to_that_of_the_set(maps):
    label, mapped = maps
    parts = [ConfusionMatrix.of(label[rows], mapped[rows], 4) for rows in (slice(0, 13), slice(13, None))]
    whole = sum(parts, ConfusionMatrix.none(4))
    assert np.array_equal(whole.counts, ConfusionMatrix.of(label, mapped, 4).counts)
    assert whole.total == (label < 4).sum()


def test_nothing_labelled_is_nan_and_agreement_by_chance_alone_has_no_kappa():
    empty = ConfusionMatrix.of(np.full(3, 255, np.uint8), np.zeros(3, np.uint8), 4)
    found = grade_summary(empty, NAMES)
    assert all(math.isnan(found[name]) for name in ("oa", "miou", "f1_loc", "f1_clf")) and len(found["absent"]) == 4
    assert math.isnan(empty.kappa)
    same = ConfusionMatrix.of(np.zeros(3, np.uint8), np.zeros(3, np.uint8), 2)
    assert math.isnan(same.kappa) and math.isnan(change_summary(same)["f1"])


def test_harmonic_mean():
    assert harmonic_mean(np.array([0.5, 1.0, np.nan])) == pytest.approx(2 / 3)
    assert harmonic_mean(np.array([0.5, 0.0])) == 0


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="differ in size"):
        ConfusionMatrix.of(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 4)
    with pytest.raises(DataError, match="outside 0 to 3"):
        ConfusionMatrix.of(np.zeros(2, np.uint8), np.array([0, 255], np.uint8), 4)
