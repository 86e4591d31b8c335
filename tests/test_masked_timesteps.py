import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.conv_transformer import ConvTransformer
from jax_emossl.encoders.temporal_conv import TemporalConv
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.masking import most_visible, span_masks
from jax_emossl.objectives import masked_timesteps
from jax_emossl.objectives.masked_timesteps import MaskedTimesteps, Reconstruction

OBJECTIVE = MaskedTimesteps(Transformer(width=16, layers=1, heads=2), dimension=6, ratio=0.5, span=3, loss_name="l1")
VISIBLE = dataclasses.replace(OBJECTIVE, decoder_width=8)  # encodes the unmasked steps alone
NUM_STEPS = np.array([20, 9, 1, 14], np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]
KEY = jax.random.key(7)


def batch(seed=0):
    features = np.random.default_rng(seed).normal(size=(4, 20, 6)).astype(np.float32)
    labels = np.zeros((4, 2), np.float32)
    features = np.where(VALID[..., None], features, 0)
    return {
        "features": features, "num_steps": NUM_STEPS, "num_frames": NUM_STEPS, "labels": labels,
        "weight": np.ones(4, np.float32), "segment": np.array([3, 8, 1, 40], np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module", params=[OBJECTIVE, VISIBLE], ids=["all steps", "unmasked steps"])
def objective(request):
    return request.param


@pytest.fixture(scope="module")
def params(objective):
    return jax.jit(objective.init)(jax.random.key(0), batch())


@pytest.fixture(scope="module")
def blind(params):
    """Parameters whose head ignores the encoder, so that the features matter only as what is to be reconstructed."""
    dense = {"kernel": jnp.zeros_like(params["head"]["Dense_0"]["kernel"]), "bias": jnp.arange(6.0)}
    return {**params, "head": {**params["head"], "Dense_0": dense}}


def variables(params):
    return {"params": params, "constants": {}}


def loss(objective, params, batch, key=KEY):
    """Sum, count and sum of the constant as numbers."""
    total, count, scalars = _loss(objective, params, batch, key)
    return float(total), float(count), float(scalars["loss_of_constant"])


@functools.partial(jax.jit, static_argnames="objective")
def _loss(objective, params, batch, key):
    return objective.loss(variables(params), batch, key)


@functools.partial(jax.jit, static_argnames="objective")
def predict(objective, params, batch):
    return objective.predict(variables(params), batch)


def masked_in_loss(objective):
    """The masks that the objective draws from `KEY`."""
    keys = jax.random.split(jax.random.split(KEY)[0], 4)
    return np.asarray(span_masks(keys, NUM_STEPS, 20, 0.5, 3, exact=objective == VISIBLE))


def test_the_loss_counts_masked_valid_steps_and_nothing_else(objective, blind):
    masked, features = masked_in_loss(objective), batch()["features"]
    total, count, of_constant = loss(objective, blind, batch())
    per_step = np.abs(features - np.arange(6.0)).mean(-1)
    assert count == masked.sum() and not (masked & ~VALID).any()
    assert total == pytest.approx(per_step[masked].sum(), rel=1e-5)
    assert of_constant == pytest.approx(np.abs(features).mean(-1)[masked].sum(), rel=1e-5)


def test_unmasked_and_padded_steps_are_no_target(objective, blind):
    masked, noise = masked_in_loss(objective)[..., None], np.random.default_rng(1).normal(size=(4, 20, 6)).astype(np.float32)
    total = loss(objective, blind, batch())[0]
    assert loss(objective, blind, batch() | {"features": np.where(masked, batch()["features"], noise)})[0] == pytest.approx(total, rel=1e-6)
    assert loss(objective, blind, batch() | {"features": np.where(masked, noise, batch()["features"])})[0] != pytest.approx(total, rel=1e-3)


def test_what_is_to_be_reconstructed_cannot_be_seen(objective, params):
    masked, features = masked_in_loss(objective)[..., None], batch()["features"]
    far = np.where(masked, features + 1000, features)
    (seen, count, _), (unseen, _, _) = loss(objective, params, batch()), loss(objective, params, batch() | {"features": far})
    assert unseen / count == pytest.approx(1000, abs=10)  # the reconstruction did not move along
    assert seen / count < 10


def test_padding_changes_neither_loss_nor_gradient(objective, params):
    noise = np.random.default_rng(1).normal(size=(4, 20, 6)).astype(np.float32)
    noisy = batch() | {"features": np.where(VALID[..., None], batch()["features"], noise)}
    value_and_gradient = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(variables(p), b, KEY)[0]))
    (a, gradient), (b, noisy_gradient) = value_and_gradient(params, batch()), value_and_gradient(params, noisy)
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradient, noisy_gradient)


def test_filler_rows_count_for_nothing(objective, params):
    weight, other = np.array([1, 0, 1, 1], np.float32), batch()["features"].copy()
    other[1] += 5
    total, count, of_constant = loss(objective, params, batch() | {"weight": weight})
    assert loss(objective, params, batch() | {"weight": weight, "features": other}) == pytest.approx((total, count, of_constant), rel=1e-6)
    assert count == masked_in_loss(objective)[[0, 2, 3]].sum()


def test_steps_draw_new_masks_but_an_evaluation_repeats_itself(objective, params):
    assert loss(objective, params, batch(), key=jax.random.key(1)) != loss(objective, params, batch(), key=jax.random.key(2))
    np.testing.assert_array_equal(predict(objective, params, batch())["loss"], predict(objective, params, batch())["loss"])


def test_padding_and_the_other_rows_never_change_a_segments_outputs(objective, params):
    together = predict(objective, params, batch())
    longer = np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)
    turned = {name: array[::-1] for name, array in batch().items()}
    alone = [predict(objective, params, {name: array[i : i + 1] for name, array in batch().items()}) for i in range(4)]
    for name in ("loss", "loss_of_constant", "steps"):
        np.testing.assert_allclose(predict(objective, params, batch() | {"features": longer})[name], together[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(predict(objective, params, turned)[name][::-1], together[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose([a[name][0] for a in alone], together[name], rtol=1e-5, atol=1e-5)


def test_statistics_of_a_crop_are_those_of_its_valid_steps():
    lags = (1, 4, 50)
    counts = masked_timesteps.steps_per_dimension(NUM_STEPS, 1, 6)
    rows = masked_timesteps.crop_statistics(jnp.where(VALID[..., None], batch()["features"], 9.0), counts, lags)
    for row, features, n in zip(np.asarray(rows), batch()["features"], NUM_STEPS, strict=True):
        own = np.sort(features[:n], 0)
        changes = np.abs(np.diff(features[:n], axis=0)).mean(0) if n > 1 else np.zeros(6)
        quantiles = [own[int(q * (n - 1))] for q in (0.05, 0.5, 0.95)]
        centred = features[:n] - own.mean(0)
        correlations = [(centred[k:] * centred[: max(n - k, 0)]).sum(0) / ((centred**2).sum(0) + 0.01 * n) for k in lags]
        expected = [own.mean(0), np.sqrt(own.var(0) + 1e-5), changes, *quantiles, *correlations]
        np.testing.assert_allclose(row, np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_statistics_are_told_of_whole_crops_and_add_their_share(objective):
    telling = dataclasses.replace(objective, statistics_weight=0.5, lags=(2,))
    own = jax.jit(telling.init)(jax.random.key(0), batch())
    own = {**own, "statistics": jax.tree.map(jnp.zeros_like, own["statistics"])}  # tells 0
    reconstruction, count, _ = loss(objective, own, batch())
    total = loss(telling, own, batch())[0]
    counts = masked_timesteps.steps_per_dimension(NUM_STEPS, 1, 6)
    per_row = np.abs(masked_timesteps.crop_statistics(batch()["features"], counts, (2,))).mean(1)
    assert total - reconstruction == pytest.approx(0.5 * (masked_in_loss(objective).sum(1) * per_row).sum(), rel=1e-4)
    # Reconstruction is learned first; from 30 % of the training on the share grows to its full size at the end.
    early, later = (float(jax.jit(telling.loss)(variables(own), batch(), KEY, progress)[0]) for progress in (0.3, 0.65))
    assert early == pytest.approx(reconstruction, rel=1e-5) and later - early == pytest.approx((total - early) / 2, rel=1e-3)
    weight = np.array([1, 0, 1, 1], np.float32)
    assert loss(telling, own, batch() | {"weight": weight})[0] < total
    noise = np.random.default_rng(1).normal(size=(4, 20, 6)).astype(np.float32)
    noisy = batch() | {"features": np.where(VALID[..., None], batch()["features"], noise)}
    assert loss(telling, own, noisy)[0] == pytest.approx(total, rel=1e-5)


def test_what_tells_statistics_are_the_unmasked_steps(objective):
    """Of whatever is masked nothing can be told; without a decoder it stands in what is pooled as the mask embedding."""
    telling, masked = dataclasses.replace(objective, statistics_weight=0.5, lags=(2,)), masked_in_loss(objective)
    params = jax.jit(telling.init)(jax.random.key(0), batch())
    keys = jax.random.split(jax.random.split(KEY)[0], 4)

    @jax.jit
    def told(features):
        return telling.reconstruct(variables(params), batch() | {"features": features}, keys)[2]

    expected, features = np.asarray(told(batch()["features"])), batch()["features"]
    np.testing.assert_array_equal(told(np.where(masked[..., None], 50.0, features)), expected)
    moved = np.abs(told(np.where(VALID & ~masked, 1, 0)[..., None] + features) - expected).max(1)
    assert (moved[[0, 1, 3]] > 1e-3).all() and moved[2] == 0  # one step long, all masked
    if telling.decoder_width:
        row = features[:1, VALID[0] & ~masked[0]]
        positions = np.flatnonzero(VALID[0] & ~masked[0])[None]
        encoded = telling.encoder.apply({"params": params["encoder"]}, row, np.array([row.shape[1]]), None, True, positions)
        norm, dense = params["LayerNorm_1"], params["statistics"]
        pooled = nn.LayerNorm().apply({"params": norm}, encoded.pooled())
        np.testing.assert_allclose(pooled @ dense["kernel"] + dense["bias"], expected[:1], atol=1e-5)


def test_without_a_decoder_all_steps_are_encoded_as_ever():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())
    assert set(params) == {"encoder", "head"}
    keys = jax.random.split(jax.random.split(KEY)[0], 4)
    made = jax.jit(OBJECTIVE.reconstruct)(variables(params), batch(), keys)[1]

    @jax.jit
    def by_hand(params, masked):
        output = OBJECTIVE.encoder.apply({"params": params["encoder"]}, batch()["features"], NUM_STEPS, masked).layers[-1]
        return Reconstruction(6).apply({"params": params["head"]}, output)

    np.testing.assert_array_equal(made, by_hand(params, masked_in_loss(objective)))


def test_with_a_decoder_the_encoder_reads_the_unmasked_steps_alone(monkeypatch):
    """And what goes on to fine-tuning has the parameters that it has without one."""
    read, apply = [], Transformer.__call__
    monkeypatch.setattr(
        Transformer, "__call__", lambda self, x, *own: read.append((self.width, self.layers, x.shape)) or apply(self, x, *own)
    )
    params = jax.eval_shape(VISIBLE.init, jax.random.key(0), batch())
    read.clear()
    jax.eval_shape(VISIBLE.reconstruct, variables(params), batch(), jax.random.split(KEY, 4))
    most = most_visible(20, VISIBLE.ratio)
    assert most < 20 and read == [(16, 1, (4, most, 6)), (8, 1, (4, 20, 8))]
    assert params["encoder"] == jax.eval_shape(OBJECTIVE.init, jax.random.key(0), batch())["encoder"]


NUM_FRAMES = np.array([60, 25, 2, 41], np.int32)  # the last steps have 3, 1, 2 and 2 frames
THERE = np.arange(60).reshape(20, 3) < NUM_FRAMES[:, None, None]
THERE = np.repeat(THERE, 2, 2)  # (B, T, D)


def filled(value=0.0):
    return batch() | {"features": np.where(THERE | ~VALID[..., None], batch()["features"], value), "num_frames": NUM_FRAMES}


def test_what_fills_up_the_last_stack_is_not_reconstructed(objective, blind):
    stacked = dataclasses.replace(objective, stack=3)  # of two features
    np.testing.assert_array_equal(masked_timesteps.steps_per_dimension(NUM_FRAMES, 3, 6), THERE.sum(1))
    counted = masked_in_loss(objective)[..., None] & THERE
    assert counted.sum() < 6 * masked_in_loss(objective).sum()  # some of it is masked
    total, count, of_constant = loss(stacked, blind, filled())
    assert count == pytest.approx(counted.sum() / 6)
    assert total == pytest.approx(np.abs(batch()["features"] - np.arange(6.0))[counted].sum() / 6, rel=1e-5)
    assert of_constant == pytest.approx(np.abs(batch()["features"])[counted].sum() / 6, rel=1e-5)
    assert loss(stacked, blind, filled(50.0)) == pytest.approx((total, count, of_constant), rel=1e-6)
    assert loss(stacked, blind, filled(50.0) | {"num_frames": 3 * NUM_STEPS})[0] > 2 * total  # else it would be


def test_what_fills_up_the_last_stack_does_not_count_in_statistics():
    counts = masked_timesteps.steps_per_dimension(NUM_FRAMES, 3, 6)
    rows = masked_timesteps.crop_statistics(filled(50.0)["features"], counts, (1,)).reshape(4, -1, 6)
    for row, features, there in zip(np.asarray(rows), batch()["features"], THERE, strict=True):
        for d, n in enumerate(there.sum(0)):
            own = features[:n, d]
            expected = [own.mean(), np.sqrt(own.var() + 1e-5)] if n else [0, np.sqrt(1e-5)]
            np.testing.assert_allclose(row[:2, d], expected, rtol=1e-4, atol=1e-5)
            assert row[5, d] == pytest.approx(np.sort(own)[int(0.95 * (n - 1))] if n else 0)
    # The third row has no value in its last two dimensions: there is nothing to be told of them.
    objective = dataclasses.replace(OBJECTIVE, stack=3, statistics_weight=1.0)
    params = jax.tree.map(jnp.zeros_like, jax.jit(objective.init)(jax.random.key(0), batch()))
    third = {name: array[2:3] for name, array in filled().items()}
    moved = {**params, "statistics": {**params["statistics"], "bias": jnp.tile(jnp.array([0, 0, 0, 0, 9.0, 9.0]), 6)}}
    expected, made = loss(objective, params, third), loss(objective, moved, third)
    assert np.isfinite(expected[0]) and made == pytest.approx(expected)


def test_metrics_are_global_means_beside_the_constants():
    outputs = {"loss": np.array([6.0, 2.0]), "loss_of_constant": np.array([9.0, 3.0]), "steps": np.array([3.0, 1.0])}
    means = {"loss": 2.0, "loss_of_constant": 3.0}
    assert OBJECTIVE.evaluate(outputs, np.zeros((2, 0)), None) == (means | {"total_loss": 2.0}, {})
    telling, outputs = dataclasses.replace(OBJECTIVE, statistics_weight=0.5), outputs | {"loss_of_statistics": np.array([3.0, 3.0])}
    # Steps are chosen by what is trained in the end.
    report = telling.evaluate(outputs, np.zeros((2, 0)), None)[0]
    assert report == means | {"loss_of_statistics": 1.5, "total_loss": 2.75} and telling.selection == "total_loss"
    assert not OBJECTIVE.labelled


def test_pictures_show_the_masks_and_reconstructions_that_an_evaluation_judges(objective, params):
    pictures, outputs = objective.illustrate(variables(params), batch()), predict(objective, params, batch())
    masked = np.asarray(pictures["masked"])
    np.testing.assert_array_equal(masked.sum(1), outputs["steps"])
    error = np.abs(pictures["reconstructed"] - batch()["features"]).mean(-1)
    np.testing.assert_allclose(np.where(masked, error, 0).sum(1), outputs["loss"], rtol=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("l1", 2.0), ("l2", 4.0), ("huber", 1.5)])
def test_the_configured_loss_is_taken(name, expected):
    encoder = dataclasses.replace(OBJECTIVE.encoder, layers=0)  # compiles fast
    objective = dataclasses.replace(OBJECTIVE, encoder=encoder, loss_name=name)
    params = jax.tree.map(jnp.zeros_like, jax.jit(objective.init)(jax.random.key(0), batch()))
    total, count, _ = loss(objective, params, batch() | {"features": np.full((4, 20, 6), 2, np.float32)})
    assert total / count == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("span", "expected"), [(0.8, 20), (0.05, 1), (0.01, 1), (0.0, 1)])
def test_spans_are_given_in_seconds(span, expected):
    frontend = Frontend(("a", "b", "c"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    config = ml_collections.ConfigDict({"ratio": 0.6, "span": span, "loss": "l2", "statistics_weight": 3.0, "decoder_width": 8})
    made = masked_timesteps.make(config, OBJECTIVE.encoder, frontend, types.SimpleNamespace())
    assert made == MaskedTimesteps(OBJECTIVE.encoder, 6, 0.6, expected, "l2", 3.0, (2, 4, 8, 16), 2, 8)


def test_a_pretraining_on_unmasked_steps_alone_is_one_field(tiny_config, trained):
    _, rows = trained(tiny_config("pretrain", {"objective.decoder_width": 8}))
    assert all(np.isfinite([row["metrics"][name] for name in ("loss", "loss_of_statistics", "total_loss")]).all() for row in rows[::2])


@pytest.mark.parametrize("encoder", [ConvTransformer(8, 1, 2, 1, 3), TemporalConv(8, 1, 3)])
def test_an_encoder_that_cannot_skip_steps_is_refused_a_decoder(encoder):
    frontend = Frontend(("a", "b", "c"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    config = ml_collections.ConfigDict({"ratio": 0.6, "span": 0.1, "loss": "l2", "statistics_weight": 3.0, "decoder_width": 8})
    with pytest.raises(
        UserError, match="objective.decoder_width is 8, but the encoder of model.name cannot skip steps: choose transformer"
    ):
        masked_timesteps.make(config, encoder, frontend, types.SimpleNamespace())
    config.decoder_width = 0
    assert masked_timesteps.make(config, encoder, frontend, types.SimpleNamespace()).decoder_width == 0
