import functools
import importlib
import json
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from conftest import same

from jax_emossl import checkpoint
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.objectives import cluster_identities
from jax_emossl.objectives.cluster_identities import ClusterIdentities, clusters_of

ENCODER = Transformer(width=16, layers=1, heads=2)
OBJECTIVE = ClusterIdentities(ENCODER, ratio=0.5, span=2, clusters=4)
NUM_STEPS = np.array([20, 9, 1, 14], np.int32)
VALID = np.arange(20) < NUM_STEPS[:, None]
RNG = np.random.default_rng(0)
CONSTANTS = {
    "centroids": RNG.normal(size=(2, 4, 6)).astype(np.float32),
    "share": np.array([[0.4, 0.3, 0.2, 0.1], [0.6, 0.4, 0, 0]], np.float32),
}


def batch():
    features = np.random.default_rng(0).normal(size=(4, 20, 6)).astype(np.float32)
    return {
        "features": np.where(VALID[..., None], features, 0), "num_steps": NUM_STEPS, "recording": np.array([0, 1, 0, 1], np.int32),
        "weight": np.ones(4, np.float32), "segment": np.arange(4, dtype=np.int32),
    }  # fmt: skip


class Pieces:
    """Segments of three recordings: two alike but for an offset, and one of three different steps."""

    def __init__(self):
        rng = np.random.default_rng(1)
        own = rng.normal(size=(5, 1, 6)) + 0.05 * rng.normal(size=(5, 40, 6))
        few = np.repeat(np.eye(3, 6), 4, 0)
        self._pieces = [x.astype(np.float32) for x in (*own, *(own + 7), few)]
        self.recording, self.dimension = np.repeat([0, 1, 2], [5, 5, 1]), 6
        self.num_recordings = 4  # the fourth has no segment

    def steps(self, i, start=0, length=None):
        return self._pieces[i][start:][:length]


def test_clusters_are_those_of_a_recording_and_always_the_same():
    found = clusters_of(Pieces(), 5)
    same(found, clusters_of(Pieces(), 5))
    centroids, share = found["centroids"], found["share"]
    order = [np.argsort(own[:, 0]) for own in centroids[:2]]
    np.testing.assert_allclose(centroids[1][order[1]], centroids[0][order[0]] + 7, atol=1e-4)  # a speaker's offset changes no identity
    np.testing.assert_allclose(share[:2], 0.2)
    assert np.count_nonzero(share[2]) == 3 and not share[3].any()  # as many as a recording has different steps
    np.testing.assert_allclose(share[2].sum(), 1)


@functools.partial(jax.jit, static_argnames="objective")
def predict(params, batch, objective=OBJECTIVE):
    return objective.predict({"params": params, "constants": jax.tree.map(jnp.asarray, CONSTANTS)}, batch)


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())


def masked_by_evaluation():
    """The number of masked steps of every identity, per row."""
    from jax_emossl.masking import span_masks
    from jax_emossl.objectives import fixed_keys

    masked = np.asarray(span_masks(fixed_keys(batch()), NUM_STEPS, 20, 0.5, 2))
    counts = np.zeros((4, 4))
    for row, recording in enumerate(batch()["recording"]):
        known = CONSTANTS["centroids"][recording][CONSTANTS["share"][recording] > 0]
        for step in batch()["features"][row][masked[row]]:
            counts[row, ((known - step) ** 2).sum(1).argmin()] += 1
    return counts


def test_masked_steps_are_told_among_the_identities_that_the_recording_has(params):
    outputs, counts = predict(params, batch()), masked_by_evaluation()
    np.testing.assert_array_equal(outputs["steps"], counts.sum(1))
    share = CONSTANTS["share"][batch()["recording"]]
    expected = -np.sum(counts * np.log(np.where(share > 0, share, 1)), 1)
    np.testing.assert_allclose(outputs["loss_of_constant"], expected, rtol=1e-5)
    np.testing.assert_array_equal(outputs["accuracy_of_constant"], counts[:, 0])  # the first is the most frequent
    assert np.isfinite(outputs["loss"]).all()


def test_with_nothing_to_go_by_all_identities_of_a_recording_are_as_likely(params):
    blind = {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
    outputs = predict(blind, batch())
    np.testing.assert_allclose(outputs["loss"] / outputs["steps"], np.log([4, 2, 4, 2]), rtol=1e-5)


def test_padding_and_the_other_rows_never_change_an_output(params):
    together = predict(params, batch())
    longer = predict(params, batch() | {"features": np.pad(batch()["features"], ((0, 0), (0, 12), (0, 0)), constant_values=9.0)})
    turned = predict(params, {name: array[::-1] for name, array in batch().items()})
    for name, own in together.items():
        np.testing.assert_allclose(longer[name], own, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(turned[name][::-1], own, rtol=1e-4, atol=1e-4)


def test_the_clusters_are_kept_with_the_run_and_an_evaluation_takes_them(tiny_config, trained, tmp_path):
    config = tiny_config("cluster_identities", {"objective.clusters": 4})
    folder, rows = trained(config)
    experiment = build(config)
    kept = checkpoint.load_best(folder).variables["constants"]
    assert kept["centroids"].shape == (len(experiment.corpus.recordings), 4, experiment.frontend.dimension)
    assert (kept["share"].sum(1) > 0.99).all()  # every recording's, held out or not
    evaluate = importlib.import_module("jax_emossl.tasks.evaluate")
    asked = importlib.import_module("configs.evaluate").get_config()
    asked.init_from = str(folder)
    again = evaluate.run(asked, tmp_path)
    assert again[0]["metrics"] == [row["metrics"] for row in rows if row["fold"] == "test"][0]
    refusal = "learned cluster_identities of the recordings of .*, which no other corpus or division has: evaluate it without data"
    with pytest.raises(UserError, match=refusal):  # other folds have other recordings at its places
        again = asked.copy_and_resolve_references()
        again.data.prepared = config.data.prepared
        evaluate.run(again, tmp_path)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"corpus": "another"}))
    with pytest.raises(UserError, match=refusal):
        evaluate.run(asked, tmp_path)


def test_the_config_is_read_in_seconds():
    config = ml_collections.ConfigDict({"ratio": 0.5, "span": 0.08, "clusters": 4})
    frontend = Frontend(("a", "b"), None, 180.0, 5.0, pool=2, stack=2, frame_seconds=0.01)
    assert cluster_identities.make(config, ENCODER, frontend, types.SimpleNamespace()) == OBJECTIVE
