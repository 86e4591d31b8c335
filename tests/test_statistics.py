"""Normalisation statistics with known answers."""

import json

import numpy as np
import pytest
from make_corpus import grid

from jax_emossl.data.statistics import Statistics, mark, voiced_frames


def test_only_finite_values_count():
    frames = np.array([[1, np.nan], [3, -np.inf], [np.inf, np.nan]], np.float32)
    statistics = Statistics.of(frames, grid(3, 0.5))
    np.testing.assert_array_equal(statistics.mean, [2, np.nan])
    np.testing.assert_array_equal(statistics.variance, [1, np.nan])
    np.testing.assert_array_equal(statistics.count, [2, 0])
    assert statistics.seconds == 1.5


def test_what_is_not_finite_is_marked():
    frames = np.array([[1, np.nan], [3, -np.inf], [np.inf, 2]], np.float32)
    assert mark(frames) == 3
    np.testing.assert_array_equal(frames, [[1, np.nan], [3, np.nan], [np.nan, 2]])


def test_overlapping_frames_cover_their_time_once():
    starts = np.arange(100) * 0.01
    intervals = np.column_stack([starts, starts + 0.025])
    assert Statistics.of(np.zeros((100, 1)), intervals).seconds == pytest.approx(1.015)


@pytest.mark.parametrize(
    ("names", "frames", "pitch"),
    [
        (["F0", "VUV"], [[100, 1], [0, 0], [200, 1], [50, 0]], 150),  # COVAREP: VUV decides
        (["F0semitoneFrom27.5Hz_sma3nz", "loudness"], [[30, 1], [0, 0], [20, 1], [0, 0]], 25),  # openSMILE: F0 > 0
    ],
)
def test_pitch_is_of_voiced_frames_alone(names, frames, pitch):
    frames = np.array(frames, np.float32)
    statistics = Statistics.of(frames, grid(4), voiced_frames(frames, names))
    assert statistics.mean[0] == pitch
    assert statistics.mean[1] == 0.5


def test_features_without_pitch_all_count():
    assert voiced_frames(np.zeros((2, 1)), ["energy"]) is None


def test_pooled_equals_the_statistics_of_all_together():
    rng = np.random.default_rng(0)
    frames = rng.normal(3, 2, size=(60, 4)).astype(np.float32)
    frames[rng.random(frames.shape) < 0.2] = np.nan
    frames[:20, 3] = np.nan
    whole = Statistics.of(frames, grid(60))
    pooled = Statistics.pooled([Statistics.of(part, grid(20)) for part in np.split(frames, 3)])
    np.testing.assert_allclose(pooled.mean, whole.mean)
    np.testing.assert_allclose(pooled.variance, whole.variance)
    np.testing.assert_array_equal(pooled.count, whole.count)
    assert pooled.seconds == pytest.approx(whole.seconds)


@pytest.mark.parametrize(("prior", "weight"), [(0, 1), (np.inf, 0), (180, 60 / 240), (60, 1 / 2)])
def test_shrinkage(prior, weight):
    own = Statistics(np.array([4.0, np.nan]), np.array([2.0, np.nan]), 60.0)
    other = Statistics(np.array([8.0, 1.0]), np.array([6.0, 5.0]), 1e4)
    shrunk = own.shrunk(other, prior)
    np.testing.assert_allclose(shrunk.mean, [weight * 4 + (1 - weight) * 8, 1])
    np.testing.assert_allclose(shrunk.variance, [weight * 2 + (1 - weight) * 6, 5])


def test_json_round_trip():
    statistics = Statistics(np.array([1 / 3, np.nan]), np.array([2.0, np.nan]), 12.5)
    again = Statistics.from_json(json.loads(json.dumps(statistics.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.variance, statistics.variance)
    assert again.seconds == 12.5


@pytest.mark.parametrize(
    "table",
    [
        {"mean": [1], "variance": [1, 2], "seconds": 1},
        {"mean": [1], "variance": [-1], "seconds": 1},
        {"mean": [1], "variance": [1], "seconds": -1},
    ],
)
def test_damaged_json_is_refused(table):
    with pytest.raises(ValueError, match="statistics"):
        Statistics.from_json(table)
