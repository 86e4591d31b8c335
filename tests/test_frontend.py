import dataclasses
import json

import numpy as np
import pytest

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError

NAMES = ("a", "b", "c")
TRAIN = Statistics(np.array([1.0, 0.0, 4.0]), np.array([4.0, 1.0, 0.0]), seconds=600.0)


def frontend(prior=180.0, clip=5.0, pool=1, stack=1, train=TRAIN):
    return Frontend(NAMES, train, prior, clip, pool, stack)


def frames(n=200, seed=0):
    return np.random.default_rng(seed).normal([3, -2, 4], [1.5, 0.5, 0], (n, 3)).astype(np.float32)


def statistics(values, rate=100):
    times = np.arange(len(values) + 1) / rate
    return Statistics.of(values, np.column_stack([times[:-1], times[1:]]))


def test_without_prior_each_recording_is_normalised_by_its_own_statistics():
    values, front = frames(), frontend(prior=0.0)
    normal = front(values, *front.location_and_scale(statistics(values)))
    np.testing.assert_allclose(normal[:, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal[:, :2].std(0), 1, atol=1e-5)


def test_with_infinite_prior_every_recording_is_normalised_by_the_training_fold():
    front = frontend(prior=np.inf)
    for seed in (0, 1):
        location, scale = front.location_and_scale(statistics(frames(seed=seed)))
        np.testing.assert_allclose(location, [1, 0, 4])
        np.testing.assert_allclose(scale, [2, 1, np.inf])


def test_a_prior_weighs_mean_and_variance_by_seconds():
    values = frames(n=6000)  # 60 s against 180 s
    location, scale = frontend(prior=180.0).location_and_scale(statistics(values))
    np.testing.assert_allclose(location[:2], 0.25 * values.mean(0)[:2] + 0.75 * TRAIN.mean[:2], rtol=1e-5)
    np.testing.assert_allclose(scale[:2] ** 2, 0.25 * values.var(0)[:2] + 0.75 * TRAIN.variance[:2], rtol=1e-5)


def test_constant_dimensions_become_zero():
    values, front = frames(), frontend(prior=0.0)
    assert not front(values, *front.location_and_scale(statistics(values)))[:, 2].any()


def test_normalised_values_are_clipped():
    front = frontend(prior=np.inf, clip=2.0)
    normal = front(np.array([[100.0, -100.0, 4.0], [1.0, 0.5, 4.0]], np.float32), *front.location_and_scale(TRAIN))
    np.testing.assert_allclose(normal, [[2, -2, 0], [0, 0.5, 0]])


def test_pooling_averages_and_stacking_concatenates():
    identity = np.zeros(3, np.float32), np.ones(3, np.float32)
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    steps = frontend(clip=100.0, pool=2, stack=3)(values, *identity)
    pooled = np.array([values[0:2].mean(0), values[2:4].mean(0), values[4:6].mean(0), values[6]])
    expected = np.concatenate([pooled, np.zeros((2, 3))]).reshape(2, 9)  # the last stack is filled with 0
    np.testing.assert_allclose(steps, expected)


@pytest.mark.parametrize(("pool", "stack"), [(1, 1), (2, 1), (1, 4), (2, 2), (3, 5)])
def test_number_and_width_of_steps_are_as_announced(pool, stack):
    front = frontend(pool=pool, stack=stack)
    scaling = front.location_and_scale(TRAIN)
    for n in range(1, 40):
        steps = front(frames(n), *scaling)
        assert steps.shape == (front.num_steps(np.array([n]))[0], front.dimension)
        assert np.isfinite(steps).all() and steps.dtype == np.float32


def test_a_piece_of_a_segment_equals_the_piece_of_the_whole(demo_corpus):
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8)
    segments = Segments(demo_corpus, ["train"], front)
    whole = segments.steps(3)
    assert len(whole) == segments.lengths[3] > 6
    np.testing.assert_array_equal(segments.steps(3, start=2, length=4), whole[2:6])
    np.testing.assert_array_equal(segments.steps(3, start=2, length=1000), whole[2:])


def test_normalised_demo_features_are_finite_and_centred(demo_corpus):
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 0.0, 5.0, 1, 1)
    segments = Segments(demo_corpus, ["train", "train_unlabelled"], front)
    steps = np.concatenate([segments.steps(i) for i in range(len(segments))])
    voicing = demo_corpus.features.index("F0")
    others = [i for i in range(74) if i != voicing]  # F0 is centred over voiced frames alone
    assert np.isfinite(steps).all()
    np.testing.assert_allclose(steps[:, others].mean(0), 0, atol=0.05)
    np.testing.assert_allclose(steps[:, others].std(0), 1, atol=0.1)


def test_labels_play_no_part_in_the_normalisation(demo_corpus):
    folds = {name: dataclasses.replace(fold, labels=np.full_like(fold.labels, 3)) for name, fold in demo_corpus.folds.items()}
    other = dataclasses.replace(demo_corpus, folds=folds)
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8)
    np.testing.assert_array_equal(Segments(demo_corpus, ["test"], front).steps(0), Segments(other, ["test"], front).steps(0))


@pytest.mark.parametrize("prior", [0.0, 180.0, np.inf])
def test_frontend_survives_json(prior):
    front = frontend(prior=prior, pool=2, stack=3)
    again = Frontend.from_json(json.loads(json.dumps(front.to_json(), allow_nan=False)))
    assert dataclasses.replace(again, train=TRAIN) == front
    np.testing.assert_array_equal(again.train.mean, TRAIN.mean)
    np.testing.assert_array_equal(again.train.variance, TRAIN.variance)


def test_json_that_contradicts_itself_is_refused():
    table = frontend().to_json()
    with pytest.raises(ValueError, match="differ in number"):
        Frontend.from_json(table | {"names": ["a"]})


def test_other_features_are_refused_by_name():
    with pytest.raises(UserError, match="3 features, the corpus has 2"):
        frontend().check_features(("a", "b"), "run")
    with pytest.raises(UserError, match="feature 'b' where the corpus has 'x'"):
        frontend().check_features(("a", "x", "c"), "run")
    frontend().check_features(NAMES, "run")
