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
from jax_emossl.experiment import build
from jax_emossl.model import TransformerEncoder
from jax_emossl.objectives import emotion
from jax_emossl.predict import predict
from jax_emossl.train import init_params

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
    return {
        "features": features, "num_frames": NUM_FRAMES, "labels": labels, "weight": np.ones(5, np.float32),
        "location": np.float32(0.1), "scale": np.float32(0.5),
    }  # fmt: skip


def segments(*recordings, reliance=0.5):
    return types.SimpleNamespace(recordings=np.array(recordings, object), reliance=np.full(len(recordings), reliance))


FOLD = segments("a", "b", "a", "b", "c")


def learned(objective):
    """Parameters with a head that answers something: a fresh one is all zeros."""
    params = init(objective, jax.random.key(0))
    readout = params["head"]["readout"]
    noise = jax.random.normal(jax.random.key(1), readout["kernel"].shape)
    return {**params, "head": {"readout": {"kernel": noise, "bias": readout["bias"] + 0.1}}}


@functools.partial(jax.jit, static_argnames="objective")
def init(objective, key, encoder=None):
    return objective.init(key, batch(), encoder)


@functools.partial(jax.jit, static_argnames="objective")
def pool(objective, params, batch):
    return objective.predict(params, batch)["pooled"]


def loss(objective, params, batch, key=0):
    """Sum and count as numbers."""
    total, count, _ = _loss(objective, params, batch, jax.random.key(key))
    return float(total), float(count)


@functools.partial(jax.jit, static_argnames="objective")
def _loss(objective, params, batch, key):
    return objective.loss(params, batch, key)


def plain_scores(objective, params, batch):
    """What the head answers to the batch's own standardisation."""
    readout = params["head"]["readout"]
    return np.asarray((pool(objective, params, batch) - batch["location"]) / batch["scale"] @ readout["kernel"] + readout["bias"])


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_padding_and_the_other_rows_never_change_a_prediction(labels):
    objective = make(labels, DEEP)
    params = learned(objective)

    def scores(pooled):
        return objective.finish(params, {"pooled": np.asarray(pooled)}, FOLD)["scores"]

    together = pool(objective, params, batch())
    assert scores(together).std(0).min() > 0.1  # the head does answer something
    padding = (np.arange(10) >= NUM_FRAMES[:, None])[..., None]
    noisy = batch() | {"features": np.where(padding, 100.0, batch()["features"])}
    longer = batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 22), (0, 0)), constant_values=-7.0)}
    rows = {name: array for name, array in batch().items() if array.ndim}
    turned = pool(objective, params, {name: array[::-1] for name, array in rows.items()})[::-1]
    alone = [pool(objective, params, {name: array[row : row + 1] for name, array in rows.items()})[0] for row in range(5)]
    for pooled in (pool(objective, params, noisy), pool(objective, params, longer), turned, np.array(alone)):
        np.testing.assert_allclose(pooled, together, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores(pooled), scores(together), rtol=1e-5, atol=1e-5 * np.abs(scores(together)).max())


def test_batch_size_and_bucket_lengths_never_change_a_folds_predictions(tiny_config):
    experiment = build(tiny_config("scratch"))
    objective, valid = experiment.objective, experiment.segments("valid")
    example = {"features": np.zeros((1, 8, experiment.frontend.dimension), np.float32), "num_frames": np.array([8])}
    params = init_params(objective, jax.random.key(0), example, None)
    params["head"]["readout"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["readout"]["kernel"].shape)
    expected = predict(objective, params, valid, 8, 8.0)["scores"]
    assert expected.std(0).min() > 0.1
    np.testing.assert_allclose(predict(objective, params, valid, 5, 2.0)["scores"], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_pooled_statistics_are_standardised_by_recording_as_much_as_it_is_relied_upon():
    pooled = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)
    toward = {"location": np.full(4, 1.0), "scale": np.full(4, 2.0)}
    own = segments("a", "b", "a", "b", "a", "b", reliance=1.0)
    location, scale = emotion.standards(pooled, own, toward)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        np.testing.assert_allclose(location[rows], np.tile(pooled[rows].mean(0), (3, 1)), rtol=1e-5)
        np.testing.assert_allclose(scale[rows], np.tile(pooled[rows].std(0), (3, 1)), rtol=1e-2)
    location, scale = emotion.standards(pooled, segments(*"ababab", reliance=0.0), toward)
    np.testing.assert_allclose(location, 1)
    np.testing.assert_allclose(scale, 2, rtol=1e-3)
    location, scale = emotion.standards(pooled, segments(*"ababab", reliance=0.25), toward)
    np.testing.assert_allclose(location[0], 0.25 * pooled[::2].mean(0) + 0.75, rtol=1e-5)
    np.testing.assert_allclose(scale[0] ** 2, 0.25 * pooled[::2].var(0) + 0.75 * 4, rtol=1e-2)


def test_training_standardises_a_segment_as_prediction_does():
    objective = dataclasses.replace(make(SEVERAL), dropout=0.0)
    params = learned(objective)
    pooled = np.asarray(pool(objective, params, batch()))
    chosen = np.array([4, 1, 2])
    extra = objective.extra(params, segments(*FOLD.recordings[chosen]), FOLD, lambda: {"pooled": pooled})
    rows = {name: array[chosen] for name, array in batch().items() if array.ndim} | extra
    predicted = objective.finish(params, {"pooled": pooled}, FOLD)["scores"][chosen]
    np.testing.assert_allclose(plain_scores(objective, params, rows), predicted, rtol=1e-4, atol=1e-4)


def test_the_head_is_category_unless_a_segment_carries_two_emotions():
    assert isinstance(make(SINGLE), emotion.Category)
    assert isinstance(make(SEVERAL), emotion.Intensity)
    assert isinstance(make(SINGLE, head="intensity"), emotion.Intensity)
    assert isinstance(make(SEVERAL, head="category"), emotion.Category)


def test_classes_are_those_of_the_training_fold_with_neutral_for_all_zeros():
    assert make(SINGLE).classes == ("neutral", "happy", "sad")
    assert make(SINGLE[[0, 2]]).classes == ("happy", "sad")
    assert emotion.category_names(SEVERAL, EMOTIONS) == ["anger", "neutral", "happy", "happy", "anger"]


@pytest.mark.parametrize(("labels", "metric"), [(SEVERAL, "auroc"), (SINGLE, "uar")])
def test_steps_are_selected_by_the_heads_own_metric_or_the_configured(labels, metric):
    assert make(labels).selection == metric
    assert make(labels, selection="f1_macro").selection == "f1_macro"


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_the_intensity_loss_is_the_mean_over_emotions_summed_over_segments(name):
    objective = dataclasses.replace(make(SEVERAL, loss=name), dropout=0.0)
    params = learned(objective)
    error = plain_scores(objective, params, batch()) - SEVERAL
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    expected = {"l1": np.abs(error), "l2": error**2, "huber": huber}[name].mean(1).sum()
    assert loss(objective, params, batch()) == pytest.approx((expected, 5), rel=1e-5)


def test_the_category_loss_is_the_cross_entropy_of_the_segments_class():
    objective = dataclasses.replace(make(SINGLE), dropout=0.0)
    params = learned(objective)
    target = [objective.classes.index(name) for name in emotion.category_names(SINGLE, EMOTIONS)]
    assert target == [2, 0, 1, 0, 2]
    expected = optax.softmax_cross_entropy_with_integer_labels(plain_scores(objective, params, batch()), np.array(target)).sum()
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
    assert not any(leaf.any() for leaf in jax.tree.leaves(params["head"]))
    pooled = pool(objective, params, batch())
    np.testing.assert_allclose(params["standard"]["location"], pooled.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["standard"]["scale"], pooled.std(0) + 1e-3, rtol=1e-4, atol=1e-5)


def test_the_standard_is_not_learned():
    objective = make(SEVERAL)
    params = learned(objective)
    gradient = jax.jit(jax.grad(lambda p: objective.loss(p, batch(), jax.random.key(0))[0]))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["standard"]))
    assert gradient["head"]["readout"]["kernel"].any() and gradient["encoder"]["projection"]["kernel"].any()


def test_dropout_acts_in_training_only():
    objective = make(SEVERAL)
    params = learned(objective)
    assert loss(objective, params, batch(), key=1) != loss(objective, params, batch(), key=2)
    np.testing.assert_array_equal(pool(objective, params, batch()), pool(objective, params, batch()))
    without = dataclasses.replace(objective, dropout=0.0)
    assert loss(without, params, batch(), key=1) == loss(without, params, batch(), key=2)


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
