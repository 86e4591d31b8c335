import functools
import types

import jax
import ml_collections
import numpy as np
import pytest

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.loop import train_step
from jax_emossl.objectives import agreement
from jax_emossl.objectives.agreement import Agreement, contrast
from jax_emossl.optimizer import Optimizer, Rates

ENCODER = Transformer(width=16, layers=1, heads=2)
OBJECTIVE = Agreement(ENCODER, ratio=0.5, span=2, temperature=0.1, together=4)
NUM_STEPS = np.array([20, 9, 12, 14, 20, 20], np.int32)
RECORDING = np.array([0, 0, 0, 1, 1, 2], np.int32)
BASIS = np.column_stack([np.arange(6), [0, 0, 0, 3, 3, 5], [3, 3, 3, 5, 5, 6]]).astype(np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]


def batch():
    features = np.random.default_rng(0).normal(size=(6, 20, 6)).astype(np.float32)
    return {
        "features": np.where(VALID[..., None], features, 0), "num_steps": NUM_STEPS, "basis": BASIS,
        "weight": np.ones(6, np.float32), "segment": np.arange(6, dtype=np.int32),
    }  # fmt: skip


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())


@jax.jit
def predict(params, batch):
    return OBJECTIVE.predict({"params": params, "constants": {}}, batch)


@jax.jit
def loss(params, batch):
    total, count, scalars = OBJECTIVE.loss({"params": params, "constants": {}}, batch, jax.random.key(3))
    return {"loss": total, "rows": count, **scalars}


def test_a_row_is_told_from_the_other_rows_of_its_recording_alone():
    first, second = (unit(np.random.default_rng(i).normal(size=(6, 4))) for i in (0, 1))
    made = contrast(first, second, RECORDING, np.ones(6, bool), 0.5)
    np.testing.assert_array_equal(made["rows"], [1, 1, 1, 1, 1, 0])  # the last one's recording has no other
    for i in range(5):
        others = np.flatnonzero(RECORDING == RECORDING[i])
        there, back = first[i] @ second[others].T / 0.5, second[i] @ first[others].T / 0.5
        own = first[i] @ second[i] / 0.5
        expected = (np.log(np.exp(there).sum()) + np.log(np.exp(back).sum())) / 2 - own
        assert made["loss"][i] == pytest.approx(expected, rel=1e-5)
        assert made["accuracy"][i] == sum(int(others[way.argmax()] == i) for way in (there, back)) / 2
        assert made["loss_of_constant"][i] == pytest.approx(np.log(len(others)))
    assert all(values[5] == 0 for values in made.values())


def test_rows_that_do_not_count_are_no_candidates():
    first = unit(np.random.default_rng(0).normal(size=(6, 4)))
    made = contrast(first, first, RECORDING, np.array([1, 1, 0, 1, 0, 1], bool), 0.5)
    np.testing.assert_array_equal(made["rows"], [1, 1, 0, 0, 0, 0])
    assert made["loss_of_constant"][0] == pytest.approx(np.log(2))


def test_a_model_that_knows_the_recording_alone_is_at_chance(params):
    """Segments of nothing but their recording's offset: whatever is made of it, guessing is as good."""
    offset = np.array([-2.0, 0.5, 3.0], np.float32)[RECORDING][:, None, None]
    own = batch() | {"features": np.broadcast_to(offset, (6, 20, 6)), "num_steps": np.full(6, 20, np.int32)}
    views = predict(params, own)
    # Masks differ between segments, so equal ones for all leave the offset as the only thing to go by.
    alike = predict(params, own | {"segment": np.zeros(6, np.int32)})
    assert np.abs(alike["first"][0] - alike["first"][4]).max() > 1e-3  # it does tell recordings apart
    made = contrast(alike["first"], alike["second"], RECORDING, views["told"], 0.1)
    np.testing.assert_allclose(made["loss"], made["loss_of_constant"], atol=1e-4)
    assert not np.any(made["accuracy"] > 0.5)


def test_two_views_share_no_step(params):
    """A step moves one view or the other, never both; and one of them always."""
    before = predict(params, batch())
    moved = []
    for step in range(9):
        features = batch()["features"].copy()
        features[1, step] += 10
        after = predict(params, batch() | {"features": features})
        moved.append([np.abs(after[view][1] - before[view][1]).max() > 1e-6 for view in ("first", "second")])
    assert {tuple(own) for own in np.array(moved).tolist()} == {(True, False), (False, True)}


def test_padding_and_the_other_rows_never_change_a_view(params):
    together = predict(params, batch())
    longer = predict(params, batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)})
    turned = predict(params, {name: array[::-1] for name, array in batch().items()})
    for view in ("first", "second"):
        np.testing.assert_allclose(longer[view], together[view], atol=1e-5)
        np.testing.assert_allclose(turned[view][::-1], together[view], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together[view], axis=1), 1, rtol=1e-5)


def test_filler_rows_and_lone_steps_count_for_nothing(params):
    weight, other = np.array([1, 0, 1, 1, 1, 1], np.float32), batch()["features"].copy()
    other[1] += 5
    made = loss(params, batch() | {"weight": weight})
    again = loss(params, batch() | {"weight": weight, "features": other})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), made, again)
    assert made["rows"] == 4
    lone = NUM_STEPS.copy()
    lone[3] = 1
    assert loss(params, batch() | {"num_steps": lone})["rows"] == 3  # nor does the row that had only this one beside it


def test_the_parts_of_a_batch_keep_the_segments_of_a_recording_together(params):
    """Apart, no segment would have another to be told from."""
    own = {name: np.resize(array, (8, *array.shape[1:])) for name, array in batch().items()}
    own["basis"] = np.repeat([[0, 0, 4], [0, 4, 8]], 4, axis=0).astype(np.int32)
    optimizer = Optimizer(b2=0.98, weight_decay=0.0, clip_norm=1.0, warmup_steps=1, steps=10, accumulate=2)
    state = optimizer.transformation().init(params)
    variables = {"params": params, "constants": {}}
    *_, sums = train_step(
        OBJECTIVE, optimizer, Rates(np.float32(1e-3), np.float32(1), np.int32(0)), jax.random.key(0), variables, state, np.int32(0), own
    )
    assert sums["count"] == 8 and sums["gradient_norm"] > 0
    assert sums["loss_of_constant"] / 8 == pytest.approx(np.log(4))


def test_a_fold_is_judged_by_all_segments_of_a_recording(params):
    outputs = predict(params, batch())
    made = OBJECTIVE.finish({}, outputs, BASIS)
    report, _ = OBJECTIVE.evaluate(made, None, None)
    assert report["loss_of_constant"] == pytest.approx((3 * np.log(3) + 2 * np.log(2)) / 5)
    assert report["accuracy_of_constant"] == pytest.approx((3 / 3 + 2 / 2) / 5)


def test_recordings_of_one_segment_are_refused(params):
    lonely = types.SimpleNamespace(basis=np.column_stack([np.arange(6), np.arange(6), np.arange(1, 7)]))
    with pytest.raises(UserError, match="agreement tells segments of one recording apart, but no recording has two"):
        OBJECTIVE.begin(params, lonely)
    made = OBJECTIVE.finish({}, predict(params, batch()), lonely.basis)
    with pytest.raises(UserError, match="no recording of a fold has two: correct the folds"):
        OBJECTIVE.evaluate(made, None, None)


def test_the_config_is_read_in_seconds():
    config = ml_collections.ConfigDict({"ratio": 0.4, "span": 0.4, "temperature": 0.2, "together": 8})
    frontend = Frontend(("a", "b"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    assert agreement.make(config, ENCODER, frontend, types.SimpleNamespace()) == Agreement(ENCODER, 0.4, 10, 0.2, 8)
