import dataclasses
import functools
import types

import jax
import ml_collections
import numpy as np
import pytest

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.objectives import alteration
from jax_emossl.objectives.alteration import Alteration

ENCODER = Transformer(width=16, layers=1, heads=2)
OBJECTIVE = Alteration(ENCODER, features=5, stack=2, ratio=0.3, span=3, group=3, noisy=0.5, noise=0.2, loss_name="l1")
NUM_STEPS = np.array([20, 9, 1, 14], np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]
ROWS = 2000


def batch():
    features = np.random.default_rng(0).normal(size=(4, 20, 10)).astype(np.float32)
    return {
        "features": np.where(VALID[..., None], features, 0), "num_steps": NUM_STEPS,
        "weight": np.ones(4, np.float32), "segment": np.arange(4, dtype=np.int32),
    }  # fmt: skip


def altered(**fields):
    """One row of 20 steps, altered in many ways."""
    objective, row = dataclasses.replace(OBJECTIVE, **fields), batch()["features"][0]
    keys = jax.random.split(jax.random.key(0), ROWS)
    return row, np.asarray(jax.jit(jax.vmap(objective.altered, (0, None, None)))(keys, row, NUM_STEPS[0]))


def test_in_time_spans_are_hidden_replaced_or_left():
    row, made = altered(group=0, noisy=0.0)
    touched = (made != row).any(-1)
    hidden = (made == 0).all(-1)
    kinds = np.where(touched.any(1), np.where(hidden.any(1), "hidden", "replaced"), "left")
    shares = {kind: np.mean(kinds == kind) for kind in ("hidden", "replaced", "left")}
    assert shares == pytest.approx({"hidden": 0.8, "replaced": 0.1, "left": 0.1}, abs=0.03)
    assert touched[kinds == "hidden"].mean() == pytest.approx(0.3, abs=0.02)
    for own, where in zip(made[kinds == "replaced"], touched[kinds == "replaced"], strict=True):
        assert all((step == row).all(-1).any() for step in own[where])  # other steps of the same row


def test_a_group_of_neighbouring_features_is_hidden_in_every_frame_of_every_step():
    row, made = altered(group=3, noisy=0.0)
    hidden = (made.reshape(ROWS, 20, 2, 5) == 0).all((1, 2))
    widths = hidden.sum(1)
    assert set(widths) == {0, 1, 2, 3} and np.bincount(widths).min() > 0.2 * ROWS
    assert all(np.ptp(np.flatnonzero(own)) == own.sum() - 1 for own in hidden if own.any())  # neighbours
    assert hidden.any(0).all()


def test_noise_is_added_to_some_rows():
    row, made = altered(group=0, ratio=0.001, span=1)
    size = np.abs(made - row)  # all but a step or so are altered by noise alone
    noisy = np.median(size, (1, 2)) > 0
    assert noisy.mean() == pytest.approx(0.5, abs=0.04)
    assert np.median(size[noisy]) == pytest.approx(0.2 * 0.6745, rel=0.05)  # of a normal distribution


@functools.partial(jax.jit, static_argnames="objective")
def predict(params, batch, objective=OBJECTIVE):
    return objective.predict({"params": params, "constants": {}}, batch)


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())


def test_all_valid_steps_are_judged_against_what_they_were(params):
    outputs, features = predict(params, batch()), batch()["features"]
    variables = {"params": params, "constants": {}}
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(4))
    seen, made = jax.jit(OBJECTIVE.reconstruct)(variables, batch(), keys)
    np.testing.assert_array_equal(outputs["steps"], NUM_STEPS)
    for name, guess in (("loss", made), ("loss_of_constant", 0), ("loss_of_copy", seen)):
        expected = np.where(VALID, np.abs(guess - features).mean(-1), 0).sum(1)
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


def test_padding_and_the_other_rows_never_change_an_output(params):
    together = predict(params, batch())
    longer = np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)
    turned = predict(params, {name: array[::-1] for name, array in batch().items()})
    for name, own in predict(params, batch() | {"features": longer}).items():
        np.testing.assert_allclose(own, together[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(turned[name][::-1], together[name], rtol=1e-5, atol=1e-5)


def test_durations_and_groups_fit_the_corpus():
    config = ml_collections.ConfigDict({"share": 0.15, "span": 0.16, "group": 0.4, "noisy": 0.1, "noise": 0.2, "loss": "l1"})
    frontend = Frontend(tuple("abcde"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    made = alteration.make(config, ENCODER, frontend, types.SimpleNamespace())
    assert made == Alteration(ENCODER, 5, 2, 0.15, 4, 2, 0.1, 0.2, "l1")
