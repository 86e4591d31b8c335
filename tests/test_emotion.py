import dataclasses
import functools
import types

import jax
import ml_collections
import numpy as np
import optax
import pytest

from jax_emossl import metrics
from jax_emossl.errors import UserError
from jax_emossl.model import TransformerEncoder, pool_statistics
from jax_emossl.objectives import emotion

ENCODER = TransformerEncoder(width=8, layers=0, heads=1)  # compiles fast; where the layers matter, `DEEP` is taken
DEEP = TransformerEncoder(width=16, layers=1, heads=2)
EMOTIONS = ("happy", "sad", "anger")
NUM_FRAMES = np.array([10, 4, 1, 7, 3], np.int32)
SEVERAL = np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0], [0.5, 0, 0], [0, 0, 1]], np.float32)
SINGLE = np.array([[0, 3, 0], [0, 0, 0], [3, 0, 0], [0, 0, 0], [0, 3, 0]], np.float32)  # no anger


def make(labels, encoder=ENCODER, **fields):
    config = ml_collections.ConfigDict({"head": "auto", "loss": "huber", "dropout": 0.3, "selection": ""} | fields)
    fold = types.SimpleNamespace(labels=labels)
    corpus = types.SimpleNamespace(emotions=EMOTIONS, fold={"train": fold}.__getitem__)
    return emotion.make(config, corpus, encoder, 6)


def batch(labels=SEVERAL):
    features = np.random.default_rng(0).normal(size=(5, 10, 6)).astype(np.float32)
    features = np.where((np.arange(10) < NUM_FRAMES[:, None])[..., None], features, 0)
    return {"features": features, "num_frames": NUM_FRAMES, "labels": labels, "weight": np.ones(5, np.float32)}


def learned(objective):
    """Parameters with a head that answers something: a fresh one is all zeros."""
    params = init(objective, jax.random.key(0))
    dense = params["head"]["Dense_0"]
    noise = jax.random.normal(jax.random.key(1), dense["kernel"].shape)
    return {**params, "head": {**params["head"], "Dense_0": {**dense, "kernel": noise}}}


@functools.partial(jax.jit, static_argnames="objective")
def init(objective, key, encoder=None):
    return objective.init(key, batch(), encoder)


def predict(objective, params, batch):
    return np.asarray(_predict(objective, params, batch)["scores"])


@functools.partial(jax.jit, static_argnames="objective")
def _predict(objective, params, batch):
    return objective.predict(params, batch)


def loss(objective, params, batch, key=0):
    """Sum and count as numbers."""
    total, count, _ = _loss(objective, params, batch, jax.random.key(key))
    return float(total), float(count)


@functools.partial(jax.jit, static_argnames="objective")
def _loss(objective, params, batch, key):
    return objective.loss(params, batch, key)


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_padding_and_the_other_rows_never_change_a_prediction(labels):
    objective = make(labels, DEEP)
    params = learned(objective)
    together = predict(objective, params, batch())
    assert together.std(0).min() > 0.1  # the head does answer something
    padding = (np.arange(10) >= NUM_FRAMES[:, None])[..., None]
    noisy = batch() | {"features": np.where(padding, 100.0, batch()["features"])}
    longer = batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 22), (0, 0)), constant_values=-7.0)}
    turned = {name: array[::-1] for name, array in batch().items()}
    np.testing.assert_allclose(predict(objective, params, noisy), together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predict(objective, params, longer), together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predict(objective, params, turned)[::-1], together, rtol=1e-5, atol=1e-5)
    for row in range(5):
        alone = {name: array[row : row + 1] for name, array in batch().items()}
        np.testing.assert_allclose(predict(objective, params, alone)[0], together[row], rtol=1e-5, atol=1e-5)


def test_the_head_is_category_unless_a_segment_carries_two_emotions():
    assert isinstance(make(SINGLE), emotion.Category)
    assert isinstance(make(SEVERAL), emotion.Intensity)
    assert isinstance(make(SINGLE, head="intensity"), emotion.Intensity)
    assert isinstance(make(SEVERAL, head="category"), emotion.Category)


def test_classes_are_those_of_the_training_fold_with_neutral_for_all_zeros():
    assert make(SINGLE).classes == ("neutral", "happy", "sad")
    assert make(SINGLE[[0, 2]]).classes == ("happy", "sad")
    assert emotion.category_names(SEVERAL, EMOTIONS) == ["anger", "neutral", "happy", "happy", "anger"]


@pytest.mark.parametrize(("labels", "metric"), [(SEVERAL, "mae"), (SINGLE, "uar")])
def test_steps_are_selected_by_the_heads_own_metric_or_the_configured(labels, metric):
    assert make(labels).selection == metric
    assert make(labels, selection="f1_macro").selection == "f1_macro"


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_the_intensity_loss_is_the_mean_over_emotions_summed_over_segments(name):
    objective = dataclasses.replace(make(SEVERAL, loss=name), dropout=0.0)
    params = learned(objective)
    error = predict(objective, params, batch()) - SEVERAL
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    expected = {"l1": np.abs(error), "l2": error**2, "huber": huber}[name].mean(1).sum()
    assert loss(objective, params, batch()) == pytest.approx((expected, 5), rel=1e-5)


def test_the_category_loss_is_the_cross_entropy_of_the_segments_class():
    objective = dataclasses.replace(make(SINGLE), dropout=0.0)
    params = learned(objective)
    target = [objective.classes.index(name) for name in emotion.category_names(SINGLE, EMOTIONS)]
    assert target == [2, 0, 1, 0, 2]
    expected = optax.softmax_cross_entropy_with_integer_labels(predict(objective, params, batch()), np.array(target)).sum()
    assert loss(objective, params, batch(SINGLE)) == pytest.approx((float(expected), 5), rel=1e-5)


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_filler_rows_count_for_nothing(labels):
    objective = make(labels)
    params, weight = learned(objective), np.array([1, 1, 0, 1, 0], np.float32)
    other = batch(labels)["features"].copy()
    other[weight == 0] += 3
    changed = batch(labels[[0, 1, 0, 3, 3]]) | {"features": other}
    total, count = loss(objective, params, batch(labels) | {"weight": weight})
    assert count == 3 and total > 0
    assert loss(objective, params, changed | {"weight": weight}) == pytest.approx((total, count), rel=1e-6)


def test_a_given_encoder_is_taken_as_it_is_and_the_head_starts_afresh():
    objective = make(SEVERAL)
    encoder = jax.tree.map(lambda x: x + 0.1, init(objective, jax.random.key(0))["encoder"])
    params = init(objective, jax.random.key(5), encoder)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], encoder)
    assert not params["head"]["Dense_0"]["kernel"].any() and not params["head"]["Dense_0"]["bias"].any()
    outputs = jax.jit(ENCODER.apply)({"params": encoder}, batch()["features"], NUM_FRAMES)
    pooled = pool_statistics(outputs, NUM_FRAMES)
    np.testing.assert_allclose(params["head"]["location"], pooled.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["head"]["scale"], pooled.std(0) + 1e-3, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    objective = make(SEVERAL)
    params = learned(objective)
    assert loss(objective, params, batch(), key=1) != loss(objective, params, batch(), key=2)
    np.testing.assert_array_equal(predict(objective, params, batch()), predict(objective, params, batch()))


def test_a_class_that_training_never_saw_counts_as_missed():
    objective = make(SINGLE)
    labels = np.array([[0, 0, 0], [3, 0, 0], [0, 0, 3]], np.float32)  # anger last
    report, _ = objective.metrics({"scores": np.eye(3)[[0, 1, 1]]}, labels, None)
    assert report["accuracy"] == pytest.approx(2 / 3) and report["uar"] == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_every_class_that_training_never_saw_is_a_class_of_its_own():
    objective = make(SINGLE[[2, 2]])  # happy alone
    report, _ = objective.metrics({"scores": np.ones((3, 1))}, np.diag([3, 3, 3]).astype(np.float32), None)
    assert report["uar"] == pytest.approx(1 / 3)


def test_intensity_thresholds_come_from_the_calibration_fold():
    objective, scores = make(SEVERAL), np.random.default_rng(0).normal(size=(5, 3))
    calibration = objective.calibrate({"scores": scores}, SEVERAL)
    assert calibration == metrics.choose_thresholds(scores, SEVERAL)
    assert objective.metrics({"scores": scores}, SEVERAL, calibration) == metrics.intensity_report(scores, SEVERAL, EMOTIONS, calibration)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "both"}, "objective.head is 'both': choose one of auto, intensity, category"),
        ({"loss": "l3"}, "objective.loss is 'l3': choose one of l1, l2, huber"),
        ({"selection": "uar"}, "objective.selection is 'uar': choose one of mae"),
        ({"head": "category", "selection": "mae"}, "objective.selection is 'mae': choose one of uar"),
        ({"dropout": 1.0}, "objective.dropout is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make(SEVERAL, **fields)
