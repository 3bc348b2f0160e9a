import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmcd.score import decode_score, encode_score, score_counts, threshold_value


def test_round_trip_is_within_half_a_step() -> None:
    probability = np.linspace(0, 1, 10_001)
    stored = encode_score(probability, np.ones_like(probability, bool))
    assert stored.min() == 1
    assert stored.max() == 255
    assert np.abs(decode_score(stored) - probability).max() <= 0.5 / 254 + 1e-6


def test_not_assessed_is_zero_and_decodes_to_nan() -> None:
    stored = encode_score(np.array([0.0, 0.7, np.nan]), np.array([True, False, True]))
    assert stored.tolist() == [1, 0, 1]
    assert np.isnan(decode_score(stored)[1])


@given(st.integers(1, 255), st.floats(0, 1))
def test_threshold_value_cuts_where_the_probability_does(value: int, threshold: float) -> None:
    probability = (value - 1) / 254
    if abs(probability - threshold) > 1e-6:
        assert (value >= threshold_value(threshold)) == (probability >= threshold)


def test_threshold_of_a_stored_value_is_that_value() -> None:
    assert [threshold_value((v - 1) / 254) for v in range(1, 256)] == list(range(1, 256))


def test_counts_cover_all_bytes() -> None:
    assert score_counts(np.array([[0, 255], [7, 7]], np.uint8))[[0, 7, 255]].tolist() == [1, 2, 1]
