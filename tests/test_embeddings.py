"""Layouts and what is measured of them, on vectors whose neighbours are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcd.embedding_table import EmbeddingTable, TableTile
from mmcd.embeddings import (
    WHATS,
    Layout,
    lay_out,
    measure,
    misclassified,
    neighbours,
    stacked_vectors,
)
from mmcd.errors import Cancelled, InputError


def table_of(count: int = 60, seed: int = 0, length: int = 8) -> EmbeddingTable:
    """Pairs in two events whose second half changed: their SAR vectors point the other way."""
    random = np.random.default_rng(seed)
    changed = np.arange(count) >= count // 2
    optical = random.normal(0, 0.2, (count, length)) + np.eye(length)[0]
    sar = random.normal(0, 0.2, (count, length)) + np.where(changed[:, None], np.eye(length)[1], np.eye(length)[0])
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float16) for v in (optical, sar)]
    place = np.arange(count)
    nan = np.full(count, np.nan, np.float32)
    return EmbeddingTable(
        tile=(place % 2).astype(np.int32),
        row=(16 * (place // 10)).astype(np.int32),
        col=(16 * (place % 10)).astype(np.int32),
        x=place.astype(float),
        y=-place.astype(float),
        lon=20 + place / 1e3,
        lat=41 - place / 1e3,
        score=np.where(changed, 0.8, 0.1).astype(np.float32),
        label=changed.astype(np.float32),
        building=nan,
        built=nan.copy(),
        vectors={"optical": unit[0], "sar": unit[1]},
        tiles=(TableTile("a", "flood", "a.tif", "b.tif"), TableTile("b", "fire", "a.tif", "b.tif")),
        facts={"title": "Two events", "model": "tiny", "threshold": 0.5, "roi": 16},
    )


@given(count=st.integers(2, 40), seed=st.integers(0, 9), wanted=st.integers(1, 50))
@settings(max_examples=30)
def test_neighbours_are_those_of_brute_force(count, seed, wanted):
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    point = seed % count
    found, cosine = neighbours(vectors, point, wanted)
    pairs = []
    for other in range(count):
        if other != point:
            dot = float(np.dot(vectors[other].astype(float), vectors[point].astype(float)))
            pairs.append((dot / np.linalg.norm(vectors[other]) / np.linalg.norm(vectors[point]), other))
    expected = sorted(pairs, reverse=True)[:wanted]
    np.testing.assert_allclose(cosine, [value for value, _ in expected], atol=1e-5)
    assert point not in found and len(set(found.tolist())) == len(expected)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_seed_gives_one_picture_and_neighbours_stay_together(method, monkeypatch):
    monkeypatch.setattr("mmcd.embeddings._TSNE_STEPS", (50, 100))
    table = table_of()
    layout = Layout(method=method)
    vectors, _, _ = stacked_vectors(table, "sar")
    seen: list[tuple[str, int, int]] = []
    points = lay_out(vectors, layout, lambda *told: seen.append(told))
    assert points.shape == (60, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(points, lay_out(vectors, layout))
    found = measure(table, layout, points)
    assert found.trustworthiness > 0.8
    assert seen[-1][1] == seen[-1][2] > 0
    shuffled = measure(table, layout, points[np.random.default_rng(1).permutation(60)])
    assert shuffled.trustworthiness < found.trustworthiness - 0.1


def test_umap_is_seeded_and_tells_its_steps():
    vectors, _, _ = stacked_vectors(table_of(), "both")
    seen: list[str] = []
    points = lay_out(vectors, Layout(method="umap"))
    assert np.isfinite(points).all() and np.ptp(points) > 0
    again = lay_out(vectors, Layout(method="umap"), lambda stage, done, total: seen.append(stage))
    np.testing.assert_array_equal(points, again)
    assert "lay out by UMAP" in seen


def test_a_layout_stops_when_it_is_told_to():
    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        lay_out(stacked_vectors(table_of(), "sar")[0], Layout(method="tsne"), stop)


@pytest.mark.parametrize("what", WHATS)
def test_every_choice_of_vectors_names_pair_and_branch_of_each_point(what):
    table = table_of()
    vectors, pair, branch = stacked_vectors(table, what)
    assert len(vectors) == len(pair) == len(branch) == (120 if what == "joint" else 60)
    optical, sar = (table.vectors[name].astype(np.float32) for name in ("optical", "sar"))
    if what == "joint":
        np.testing.assert_array_equal(vectors[(pair == 7) & (branch == 0)][0], optical[7])
        np.testing.assert_array_equal(vectors[(pair == 7) & (branch == 1)][0], sar[7])
    if what == "difference":
        np.testing.assert_array_equal(vectors[7], sar[7] - optical[7])
    if what == "both":
        np.testing.assert_array_equal(vectors[7], np.concatenate([optical[7], sar[7]]))


def test_features_of_an_encoder_are_shown_where_they_were_kept():
    table = table_of()
    np.testing.assert_array_equal(stacked_vectors(table, "sar_features")[0], stacked_vectors(table, "sar")[0])
    table.vectors["sar_features"] = np.ones((60, 3), np.float16)
    assert stacked_vectors(table, "sar_features")[0].shape == (60, 3)


def test_silhouettes_tell_change_from_event():
    table = table_of()
    points = lay_out(stacked_vectors(table, "sar")[0], Layout(method="pca"))
    events = measure(table, Layout(method="pca", what="sar"), points).events
    assert [line["event"] for line in events] == ["fire", "flood"]
    for line in events:
        assert line["pairs"] == line["labelled"] == 30
        assert line["change"] > 0.3, "the SAR vectors of changed pairs lie apart"
        assert abs(line["event_apart"]) < 0.1, "the events do not"
    optical = measure(table, Layout(method="pca", what="optical"), points).events
    assert all(abs(line["change"]) < 0.2 for line in optical)


def test_a_sample_stands_for_many_points_and_says_so(monkeypatch):
    monkeypatch.setattr("mmcd.embeddings.MEASURE_SAMPLE", 30)
    table = table_of()
    points = lay_out(stacked_vectors(table, "sar")[0], Layout(method="pca"))
    found = measure(table, Layout(method="pca"), points)
    assert (found.sample, found.total) == (30, 60) and sum(line["pairs"] for line in found.events) == 30
    assert found == measure(table, Layout(method="pca"), points)


def test_misclassified_pairs_are_those_whose_score_contradicts_the_label():
    table = table_of(20)
    assert not misclassified(table, 0.5).any()
    np.testing.assert_array_equal(misclassified(table, 0.9), table.label >= 0.5)
    np.testing.assert_array_equal(misclassified(table, 0.05), table.label < 0.5)
    table.label[:] = np.nan
    assert not misclassified(table, 0.05).any()


def test_too_few_pairs_are_not_laid_out():
    with pytest.raises(InputError, match="9 patch pairs are too few"):
        lay_out(np.zeros((9, 4), np.float32), Layout(method="pca"))


def test_differences_are_told_apart_by_their_length():
    table, random = table_of(), np.random.default_rng(3)
    way = np.tile([0.6, 0.8, *[0.0] * 6], (60, 1)) + random.normal(0, 0.01, (60, 8))
    table.vectors["sar"] = (table.vectors["optical"] + way * np.where(table.label > 0, 1.0, 0.1)[:, None]).astype("f2")
    layout = Layout(method="pca", what="difference")
    points = lay_out(stacked_vectors(table, "difference")[0], layout)
    for line in measure(table, layout, points).events:
        assert line["change"] > 0.8, "they point the same way and differ in length"
