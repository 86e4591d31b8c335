import dataclasses
import functools
import json

import ml_collections
import numpy as np
import pytest

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError

NAMES = ("a", "b", "c")
TRAIN = Statistics(np.array([1.0, 0.0, 4.0]), np.array([4.0, 1.0, 0.0]), seconds=600.0)


def frontend(prior=180.0, clip=5.0, pool=1, stack=1, train=TRAIN):
    return Frontend(NAMES, train, prior, clip, pool, stack, frame_seconds=0.01)


def config(pool=0.02, stack=0.04):
    own = {"normalise_by": "recording", "enrolment": 8, "norm_prior": 180.0}
    return ml_collections.ConfigDict({**own, "clip": 5.0, "pool": pool, "stack": stack})


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


def defined(front, piece, location, scale):
    """Model steps of one piece, frame by frame as the text says."""
    normal = [np.clip((frame - location) / scale, -front.clip, front.clip) for frame in piece]
    pools = [normal[i : i + front.pool] for i in range(0, len(normal), front.pool)]
    pooled = [functools.reduce(np.add, own) / np.float32(len(own)) for own in pools]
    pooled += [np.zeros_like(piece[0])] * (-len(pooled) % front.stack)
    return np.array(pooled, np.float32).reshape(-1, front.dimension)


@pytest.mark.parametrize(("pool", "stack"), [(1, 1), (2, 2), (3, 1), (5, 2)])
def test_pieces_together_are_what_each_is_by_definition(pool, stack):
    """To the last bit, whatever their numbers of frames; steps beyond a piece are 0."""
    front, counts = frontend(pool=pool, stack=stack, clip=2.0), np.array([30, 1, 17, 29, 10])
    rng = np.random.default_rng(0)
    location, scale = np.abs(rng.normal(size=(2, len(counts), 3))).astype(np.float32)
    scale[0, 1] = np.inf  # a constant dimension
    pieces = np.array([frames(30, seed) for seed in range(len(counts))])
    made = front(pieces, location, scale, counts)
    assert made.dtype == np.float32 and made.shape == (5, front.num_steps(np.array(30)), front.dimension)
    for own, piece, count, *scaling in zip(made, pieces, counts, location, scale, strict=True):
        expected = defined(front, piece[:count], *scaling)
        np.testing.assert_array_equal(own[: len(expected)], expected)
        assert not own[len(expected) :].any()


def test_a_piece_of_a_segment_equals_the_piece_of_the_whole(demo_corpus):
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    segments = Segments(demo_corpus, ["train"], front)
    whole = segments.steps(3)
    assert len(whole) == segments.lengths[3] > 6
    np.testing.assert_array_equal(segments.steps(3, start=2, length=4), whole[2:6])
    np.testing.assert_array_equal(segments.steps(3, start=2, length=1000), whole[2:])


def test_normalised_demo_features_are_finite_and_centred(demo_corpus):
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 0.0, 5.0, 1, 1, 0.01)
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
    front = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    np.testing.assert_array_equal(Segments(demo_corpus, ["test"], front).steps(0), Segments(other, ["test"], front).steps(0))


@pytest.mark.parametrize(
    ("hop", "pool", "stack", "expected"),
    [
        (0.01, 0.02, 0.04, (2, 2)),
        (0.01, 0.02, 0.16, (2, 8)),
        (0.01, 0.0, 0.0, (1, 1)),  # at least one frame
        (0.01, 0.024, 0.049, (2, 2)),  # as many as come nearest
        (0.01, 0.026, 0.04, (3, 1)),
        (0.02, 0.02, 0.04, (1, 2)),
        (0.02, 0.04, 0.16, (2, 4)),
        (0.02, 0.01, 0.01, (1, 1)),
    ],
)
def test_seconds_become_the_frames_that_come_nearest(hop, pool, stack, expected, demo_corpus):
    front = Frontend.make(config(pool, stack), dataclasses.replace(demo_corpus, hop=hop))
    assert (front.pool, front.stack) == expected and front.frame_seconds == hop
    assert (front.names, front.prior, front.clip) == (demo_corpus.features, 180.0, 5.0)
    assert front.train is demo_corpus.train_statistics


def test_without_a_hop_a_frame_lasts_as_long_as_the_training_frames_do_on_average(demo_corpus):
    fold = demo_corpus.fold("train")
    intervals = np.column_stack([np.zeros(len(fold)), 0.3 * np.diff(fold.offsets)])  # words of .3 s
    folds = {**demo_corpus.folds, "train": dataclasses.replace(fold, intervals=intervals)}
    words = dataclasses.replace(demo_corpus, hop=None, folds=folds)
    front = Frontend.make(config(), words)
    assert front.frame_seconds == pytest.approx(0.3) and (front.pool, front.stack) == (1, 1)
    assert front.steps(2.56) == 9
    front = Frontend.make(config(pool=0.6, stack=1.8), words)
    assert (front.pool, front.stack) == (2, 3)


def test_durations_become_model_steps_at_least_one_unless_they_are_none():
    front = frontend(pool=2, stack=2)  # 40 ms
    assert [front.steps(seconds) for seconds in (2.56, 0.8, 0.09, 0.04, 0.001, 0.0)] == [64, 20, 2, 1, 1, 0]


def test_the_settings_of_a_frontend_make_it_again(demo_corpus):
    for pool, stack in ((0.02, 0.04), (0.0, 0.16), (0.03, 0.1)):
        front = Frontend.make(config(pool, stack), demo_corpus)
        settings = front.settings()
        assert set(settings) == set(config())
        assert settings["pool"] == pytest.approx(front.pool * 0.01) and settings["stack"] == pytest.approx(front.frames_per_step * 0.01)
        again = Frontend.make(ml_collections.ConfigDict(settings), demo_corpus)
        assert again.to_json() == front.to_json() and again.settings() == settings


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


@pytest.mark.parametrize(
    ("field", "value"), [("prior", -1.0), ("clip", 0.0), ("pool", 0), ("stack", 0), ("frame_seconds", 0.0), ("frame_seconds", float("nan"))]
)
def test_json_that_is_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match="out of range"):
        Frontend.from_json(frontend().to_json() | {field: value})


def test_other_features_are_refused_by_name():
    with pytest.raises(UserError, match="3 features, the corpus has 2"):
        frontend().check_features(("a", "b"), "run")
    with pytest.raises(UserError, match="feature 'b' where the corpus has 'x'"):
        frontend().check_features(("a", "x", "c"), "run")
    frontend().check_features(NAMES, "run")
