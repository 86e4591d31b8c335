import dataclasses
import functools
import types

import jax
import ml_collections
import numpy as np
import optax
import pytest

from jax_emossl import metrics, standards
from jax_emossl.encoders.conv_transformer import ConvTransformer
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.objectives import emotion
from jax_emossl.objectives.emotion import SegmentHead
from jax_emossl.representation import Representation

ENCODER = Transformer(width=8, layers=0, heads=1)  # compiles fast; where the layers matter, `DEEP` is taken
DEEP = Transformer(width=16, layers=1, heads=2)
EMOTIONS = ("happy", "sad", "anger")
NUM_STEPS = np.array([10, 4, 1, 7, 3], np.int32)
SEVERAL = np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0], [0.5, 0, 0], [0, 0, 1]], np.float32)
SINGLE = np.array([[0, 3, 0], [0, 0, 0], [3, 0, 0], [0, 0, 0], [0, 3, 0]], np.float32)  # no anger
FOLD = np.array([[0, 0, 2], [2, 2, 4], [1, 0, 2], [3, 2, 4], [4, 4, 5]], np.int32)  # two recordings of two segments, and one of one
PRIOR = 0.5
FUNCTIONALS = np.random.default_rng(1).normal(5, 3, (5, 7)).astype(np.float32)


def make(labels, encoder=ENCODER, **fields):
    config = ml_collections.ConfigDict(
        {"head": "auto", "loss": "ordinal", "reads": "encoder", "dropout": 0.3, "standards_prior": PRIOR, "selection": ""} | fields
    )
    fold = types.SimpleNamespace(labels=labels)
    corpus = types.SimpleNamespace(name="talk", emotions=EMOTIONS, fold={"train": fold}.__getitem__)
    return emotion.make(config, encoder, None, corpus)


def batch(labels=SEVERAL):
    features = np.random.default_rng(0).normal(size=(5, 10, 6)).astype(np.float32)
    features = np.where((np.arange(10) < NUM_STEPS[:, None])[..., None], features, 0)
    return {
        "features": features, "num_steps": NUM_STEPS, "labels": labels, "weight": np.ones(5, np.float32),
        "basis": FOLD, "functionals": FUNCTIONALS,
    }  # fmt: skip


def learned(objective):
    """Variables with a head that answers something, where a fresh one is all zeros, and the standards of the batch."""
    params = init(objective, jax.random.key(0))
    readout = params["head"]["readout"]
    noise = jax.random.normal(jax.random.key(1), readout["kernel"].shape)
    params = {**params, "head": {"readout": {"kernel": noise, "bias": readout["bias"] + 0.1}}}
    return {"params": params, "constants": objective.constants(pool(objective, {"params": params}, batch()), FOLD)}


@functools.partial(jax.jit, static_argnames="objective")
def init(objective, key):
    return objective.init(key, batch())


@functools.partial(jax.jit, static_argnames="objective")
def pool(objective, variables, batch):
    return objective.predict(variables, batch)


def scores(objective, variables, batch, basis=FOLD):
    return np.asarray(objective.finish(variables, pool(objective, variables, batch), basis)["scores"])


def loss(objective, variables, batch, key=0):
    """Sum and count as numbers."""
    total, count, _ = _loss(objective, variables, batch, jax.random.key(key))
    return float(total), float(count)


@functools.partial(jax.jit, static_argnames="objective")
def _loss(objective, variables, batch, key):
    return objective.loss(variables, batch, key)


def plain_scores(objective, variables, batch, others=(2, 3, 0, 1, None)):
    """What the head answers to each row's pooled representation, standardised by the one other segment of its recording, if any."""
    pooled = np.asarray(jax.jit(Representation(objective.encoder).predict)(variables, batch)["pooled"])
    overall = variables["constants"]["overall"]
    weight, scale = 1 / (1 + PRIOR), overall["scale"] + 1e-3
    location = np.array([overall["location"] if o is None else weight * pooled[o] + (1 - weight) * overall["location"] for o in others])
    readout = variables["params"]["head"]["readout"]
    return np.asarray((pooled - location) / scale @ readout["kernel"] + readout["bias"])


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_padding_and_the_other_rows_never_change_a_prediction(labels):
    objective = make(labels, DEEP)
    variables = learned(objective)
    together = np.asarray(pool(objective, variables, batch())["pooled"])
    padding = (np.arange(10) >= NUM_STEPS[:, None])[..., None]
    noisy = batch() | {"features": np.where(padding, 100.0, batch()["features"]).astype(np.float32)}
    longer = batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 22), (0, 0)), constant_values=-7.0)}
    turned = pool(objective, variables, {name: array[::-1] for name, array in batch().items()})["pooled"][::-1]
    alone = [pool(objective, variables, {name: array[row : row + 1] for name, array in batch().items()})["pooled"][0] for row in range(5)]
    for made in (pool(objective, variables, noisy)["pooled"], pool(objective, variables, longer)["pooled"], turned, np.array(alone)):
        np.testing.assert_allclose(made, together, rtol=1e-5, atol=1e-5 * np.abs(together).max())
    expected = scores(objective, variables, batch())
    assert expected.std(0).min() > 0.1  # the head does answer something
    np.testing.assert_allclose(scores(objective, variables, noisy), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_a_score_reads_the_representation_standardised_by_the_others_of_its_recording(labels):
    objective = make(labels, DEEP)
    variables = learned(objective)
    expected = plain_scores(objective, variables, batch())
    np.testing.assert_allclose(scores(objective, variables, batch()), expected, rtol=1e-4, atol=1e-4)
    alone = np.stack([np.arange(5), np.arange(5), np.arange(1, 6)], 1).astype(np.int32)
    plain = plain_scores(objective, variables, batch(), [None] * 5)  # the training fold's standards
    np.testing.assert_allclose(scores(objective, variables, batch(), alone), plain, rtol=1e-4, atol=1e-4)
    rows = [scores(objective, variables, {name: array[i : i + 1] for name, array in batch().items()}, FOLD[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(rows, plain, rtol=1e-4, atol=1e-4)  # a lone segment keeps all of its own signal


def test_constants_are_those_of_the_segments_they_are_made_of_and_not_of_filler():
    objective = make(SEVERAL)
    variables = learned(objective)
    pooled, constants = np.asarray(pool(objective, variables, batch())["pooled"]), variables["constants"]
    np.testing.assert_allclose(constants["overall"]["location"], pooled.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(constants["overall"]["scale"], pooled.std(0), rtol=1e-4, atol=1e-6)
    filled = objective.constants({"pooled": np.pad(pooled, ((0, 2), (0, 0)))}, np.pad(FOLD, ((0, 2), (0, 0)), constant_values=-1))
    np.testing.assert_allclose(filled["overall"]["scale"], constants["overall"]["scale"], rtol=1e-5)
    assert loss(objective, variables | {"constants": filled}, batch()) == pytest.approx(loss(objective, variables, batch()), rel=1e-5)


def test_training_standardises_a_segment_as_prediction_does():
    objective = dataclasses.replace(make(SEVERAL, loss="l2"), dropout=0.0)
    variables, chosen = learned(objective), np.array([4, 1, 2])
    predicted = scores(objective, variables, batch())[chosen]
    rows = {name: array[chosen] for name, array in batch().items()}
    expected = ((predicted - SEVERAL[chosen]) ** 2).mean(1).sum()
    assert loss(objective, variables, rows) == pytest.approx((expected, 3), rel=1e-4)


def test_a_rows_loss_is_standardised_by_its_own_recording():
    objective = dataclasses.replace(make(SEVERAL, loss="l2"), dropout=0.0)
    variables, alone = learned(objective), FOLD.copy()
    alone[[2, 3], 1:] = 9  # of a recording of which nothing is known
    expected = ((plain_scores(objective, variables, batch(), (2, 3, None, None, None)) - SEVERAL) ** 2).mean(1).sum()
    moved = loss(objective, variables, batch() | {"basis": alone})
    assert moved == pytest.approx((expected, 5), rel=1e-4)
    assert moved[0] != pytest.approx(loss(objective, variables, batch())[0], rel=1e-2)


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_functionals_stand_beside_the_encoder_standardised_as_it_is(labels):
    objective = dataclasses.replace(make(labels, reads="encoder+functionals"), dropout=0.0)
    assert objective.reads_functionals and not make(labels).reads_functionals
    variables = learned(objective)
    alone = pool(make(labels), variables, batch())["pooled"]
    vectors = np.asarray(pool(objective, variables, batch())["pooled"])
    np.testing.assert_array_equal(vectors, np.concatenate([alone, FUNCTIONALS], 1))
    standardised = np.asarray(standards.standardised(vectors, FOLD, variables["constants"]["overall"], PRIOR))
    readout = variables["params"]["head"]["readout"]
    assert np.abs(standardised).max() < 5  # both parts enter at the same size
    expected = standardised @ readout["kernel"] + readout["bias"]
    np.testing.assert_allclose(scores(objective, variables, batch()), expected, rtol=1e-4, atol=1e-4)
    rows = float(sum(objective._row_loss(expected, labels)))
    assert loss(objective, variables, batch(labels)) == pytest.approx((rows, 5), rel=1e-4)


def test_the_head_is_linear_and_starts_at_zero():
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    variables = SegmentHead(3).init(jax.random.key(0), x)
    assert not SegmentHead(3).apply(variables, x).any()
    (kernel,) = (leaf for leaf in jax.tree.leaves(variables) if leaf.ndim > 1)
    learned = jax.tree.map(lambda leaf: leaf + 1.0, variables)
    assert kernel.shape == (7, 3)
    np.testing.assert_allclose(SegmentHead(3).apply(learned, x), np.tile(x.sum(1, keepdims=True) + 1, 3), rtol=1e-4, atol=1e-5)


def test_the_head_is_category_unless_a_segment_carries_two_emotions():
    assert isinstance(make(SINGLE), emotion.Category)
    assert isinstance(make(SEVERAL), emotion.Intensity)
    assert isinstance(make(SINGLE, head="intensity"), emotion.Intensity)
    assert isinstance(make(SEVERAL, head="category"), emotion.Category)
    assert (make(SINGLE).head, make(SEVERAL).head) == ("category", "intensity")
    assert make(SINGLE).labelled


def test_classes_are_those_of_the_training_fold_with_neutral_for_all_zeros():
    assert make(SINGLE).classes == ("neutral", "happy", "sad")
    assert make(SINGLE[[0, 2]]).classes == ("happy", "sad")
    assert emotion.category_names(SEVERAL, EMOTIONS) == ["anger", "neutral", "happy", "happy", "anger"]


@pytest.mark.parametrize(("labels", "metric"), [(SEVERAL, "auroc"), (SINGLE, "uar")])
def test_steps_are_selected_by_the_heads_own_metric_or_the_configured(labels, metric):
    assert make(labels).selection == metric
    assert make(labels, selection="f1_macro").selection == "f1_macro"


@pytest.mark.parametrize("name", ["l1", "l2", "huber", "ordinal"])
def test_the_intensity_loss_is_the_mean_over_emotions_summed_over_segments(name):
    objective = dataclasses.replace(make(SEVERAL, loss=name), dropout=0.0)
    variables = learned(objective)
    error = plain_scores(objective, variables, batch()) - SEVERAL
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    ordinal = np.asarray(objective.levels.loss(error + SEVERAL, SEVERAL))
    expected = {"l1": np.abs(error), "l2": error**2, "huber": huber, "ordinal": ordinal}[name].mean(1).sum()
    assert loss(objective, variables, batch()) == pytest.approx((expected, 5), rel=1e-5)


def test_the_category_loss_is_the_cross_entropy_of_the_segments_class():
    objective = dataclasses.replace(make(SINGLE), dropout=0.0)
    variables = learned(objective)
    target = [objective.classes.index(name) for name in emotion.category_names(SINGLE, EMOTIONS)]
    assert target == [2, 0, 1, 0, 2]
    expected = optax.softmax_cross_entropy_with_integer_labels(plain_scores(objective, variables, batch()), np.array(target)).sum()
    assert loss(objective, variables, batch(SINGLE)) == pytest.approx((float(expected), 5), rel=1e-5)


@pytest.mark.parametrize("labels", [SEVERAL, SINGLE], ids=["intensity", "category"])
def test_filler_rows_count_for_nothing(labels):
    objective = make(labels)
    variables, weight = learned(objective), np.array([1, 1, 0, 1, 0], np.float32)
    other = batch(labels)["features"].copy()
    other[weight == 0] += 3
    changed = batch(labels[[0, 1, 0, 3, 3]]) | {"features": other}
    total, count = loss(objective, variables, batch(labels) | {"weight": weight})
    assert count == 3 and total > 0
    assert loss(objective, variables, changed | {"weight": weight}) == pytest.approx((total, count), rel=1e-6)


def test_encoder_and_head_are_all_that_is_learned():
    objective = make(SEVERAL)
    fresh = init(objective, jax.random.key(0))
    assert fresh.keys() == {"encoder", "head"} and not any(leaf.any() for leaf in jax.tree.leaves(fresh["head"]))
    assert jax.tree.structure(fresh["encoder"]) == jax.tree.structure(
        ENCODER.init(jax.random.key(0), batch()["features"], NUM_STEPS)["params"]
    )
    other = init(objective, jax.random.key(5))
    assert not np.allclose(fresh["encoder"]["projection"]["kernel"], other["encoder"]["projection"]["kernel"])


def test_gradients_reach_the_head_and_the_encoder():
    objective = make(SEVERAL)
    variables = learned(objective)
    gradient = jax.jit(jax.grad(lambda p: objective.loss(variables | {"params": p}, batch(), jax.random.key(0))[0]))(variables["params"])
    assert gradient["head"]["readout"]["kernel"].any() and gradient["encoder"]["projection"]["kernel"].any()


def test_dropout_acts_in_training_only():
    objective = make(SEVERAL)
    variables = learned(objective)
    assert loss(objective, variables, batch(), key=1) != loss(objective, variables, batch(), key=2)
    np.testing.assert_array_equal(scores(objective, variables, batch()), scores(objective, variables, batch()))
    without = dataclasses.replace(objective, dropout=0.0)
    assert loss(without, variables, batch(), key=1) == loss(without, variables, batch(), key=2)
    np.testing.assert_array_equal(scores(objective, variables, batch()), scores(without, variables, batch()))


def test_a_class_that_training_never_saw_counts_as_missed():
    objective = make(SINGLE)
    labels = np.array([[0, 0, 0], [3, 0, 0], [0, 0, 3]], np.float32)  # anger last
    report, _ = objective.evaluate({"scores": np.eye(3)[[0, 1, 1]]}, labels, None)
    assert report["accuracy"] == pytest.approx(2 / 3) and report["uar"] == pytest.approx(2 / 3)


def test_every_class_that_training_never_saw_is_a_class_of_its_own():
    objective = make(SINGLE[[2, 0]])  # happy and sad alone
    labels = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 0]], np.float32)
    report, _ = objective.evaluate({"scores": np.eye(2)[[0, 0, 0, 0]]}, labels, None)
    assert report["uar"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", ["ordinal", "huber"])
def test_thresholds_and_scales_come_from_the_calibration_fold(name):
    objective, scores = make(SEVERAL, loss=name), np.random.default_rng(0).normal(size=(5, 3))
    calibration = objective.calibrate({"scores": scores}, SEVERAL)
    assert calibration["threshold"] == metrics.choose_thresholds(scores, SEVERAL)
    if name == "ordinal":
        assert calibration["scale"] == objective.levels.scale(scores, SEVERAL)
        predicted = objective.levels.decode(scores, calibration["scale"])
    else:
        assert "scale" not in calibration
        predicted = metrics.Intensities.of(scores)
    made = objective.evaluate({"scores": scores}, SEVERAL, calibration)
    assert made == metrics.intensity_report(predicted, SEVERAL, EMOTIONS, calibration["threshold"])
    kept = objective.decode(scores, calibration)
    np.testing.assert_allclose(kept["median"], predicted.median, rtol=1e-6)
    np.testing.assert_array_equal(kept["four_class"], predicted.four_class)


def test_intensities_that_are_all_0_are_refused():
    with pytest.raises(UserError, match="Every intensity of the training fold of talk is 0"):
        make(np.zeros((4, 3), np.float32), head="intensity")
    with pytest.raises(UserError, match="Every segment of the training fold of talk is neutral"):
        make(np.zeros((4, 3), np.float32))


def test_the_constant_is_the_training_folds():
    valid = SEVERAL[::-1]
    assert make(SEVERAL).constant(valid, SEVERAL) == metrics.constant_intensity_report(valid, SEVERAL, EMOTIONS)
    report, _ = make(SINGLE).constant(SINGLE[[0, 1, 1, 1]], SINGLE)  # neutral and sad are equally common, neutral comes first
    assert report["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": "uar"}, "objective.selection is 'uar': choose one of auroc, mae"),
        ({"head": "category", "selection": "mae"}, "objective.selection is 'mae': choose one of uar"),
    ],
)
def test_a_metric_of_the_other_head_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make(SEVERAL, **fields)


def test_labels_of_answers_are_answered_so():
    category = make(SINGLE)
    labels = category.labels_of(np.eye(3)[[0, 2, 1]], {"scale": 1.0})
    np.testing.assert_array_equal(category.target(labels), [0, 2, 1])
    intensity = make(SEVERAL)
    calibration = {"threshold": [0.0] * 3, "scale": [1.0] * 3}
    strong = 50.0 * (SEVERAL > 0) - 25
    kept = intensity.labels_of(strong, calibration)
    np.testing.assert_array_equal(kept > 0, SEVERAL > 0)
    np.testing.assert_array_equal(kept, intensity.decode(strong, calibration)["median"])


def test_a_head_may_read_the_summary_alone():
    encoder = ConvTransformer(width=8, layers=1, heads=2, conv_layers=1, kernel=3)
    objective = make(SINGLE, encoder, reads="summary")
    params = init(objective, jax.random.key(0))
    assert params["head"]["readout"]["kernel"].shape == (8, len(objective.classes))
    assert pool(objective, {"params": params}, batch())["pooled"].shape == (5, 8)
    with pytest.raises(UserError, match="objective.reads is 'summary', but the encoder of model.name has none"):
        jax.eval_shape(make(SINGLE, DEEP, reads="summary").init, jax.random.key(0), batch())
