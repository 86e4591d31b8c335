import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl import mesh as meshes
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.objectives import Objective
from jax_emossl.objectives.emotion import Intensity
from jax_emossl.objectives.masked_timesteps import MaskedTimesteps
from jax_emossl.ordinal import Levels
from jax_emossl.predictor import predict, predict_rows
from jax_emossl.resident import Resident

ENCODER = Transformer(width=16, layers=1, heads=2)


@dataclasses.dataclass(frozen=True)
class Plain(Objective):
    """What NumPy says as easily: sums of a segment's steps, and which segment it is."""

    def predict(self, variables, batch):
        total = batch["features"].sum(1) * variables["params"]["factor"]
        return {"total": total, "segment": batch["segment"], "num_steps": batch["num_steps"]}

    def finish(self, variables, outputs, basis):
        of_recording = (basis[:, None, 1] == basis[None, :, 1]).astype(float) @ outputs["total"]
        return outputs | {"of_recording": of_recording + variables["constants"]["offset"]}


def plain(factor=1.0, offset=0.0):
    return {"params": {"factor": np.float32(factor)}, "constants": {"offset": np.float32(offset)}}


@pytest.fixture(scope="module")
def folds(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    return {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def resident(folds):
    return Resident(list(folds.values()))


def learned(objective, folds, seed):
    """Variables of an objective that answer something."""
    steps = folds["train"].steps(0)
    example = {"features": steps[None], "num_steps": np.array([len(steps)]), "segment": np.zeros(1, np.int32)}
    params = jax.jit(objective.init)(jax.random.key(seed), example)
    if not objective.labelled:
        return {"params": params, "constants": {}}
    readout = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(seed), leaf.shape), params["head"]["readout"])
    pooled = len(readout["kernel"])
    overall = {"location": jnp.full(pooled, 0.1 * seed), "scale": jnp.full(pooled, 1.0)}
    return {"params": {**params, "head": {"readout": readout}}, "constants": {"overall": overall}}


@pytest.fixture(scope="module", params=["emotion", "masked_timesteps"])
def objective(request, folds):
    if request.param == "emotion":
        names = tuple("abcdef")
        return Intensity(ENCODER, names, names, 0.3, "auroc", Levels.of(np.eye(6)), standards_prior=20.0)
    return MaskedTimesteps(ENCODER, folds["train"].steps(0).shape[1], 0.5, 2, "l1")


def assert_close(made, expected):
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        assert np.ptp(values) > 0.1
        np.testing.assert_allclose(made[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


@pytest.mark.parametrize("resident", [False, True])
def test_outputs_come_in_the_order_of_the_segments_and_are_finished_as_a_whole(resident, folds):
    segments = folds["train"].take(np.random.default_rng(0).permutation(len(folds["train"]))[:21])
    memory = Resident([folds["test"], folds["train"]]) if resident else None
    (made,) = predict(Plain(), [plain(2.0, 5.0)], [segments], 4, 1.3, resident=memory)
    assert all(type(values) is np.ndarray for values in made.values())
    np.testing.assert_array_equal(made["segment"], np.arange(21))
    np.testing.assert_array_equal(made["num_steps"], segments.lengths)
    total = np.array([2 * segments.steps(i).sum(0) for i in range(21)])
    np.testing.assert_allclose(made["total"], total, rtol=1e-4, atol=1e-3)
    whole, recordings = folds["train"], folds["train"].recordings  # on which a part of it rests
    of_recording = {r: sum(2 * whole.steps(i).sum(0) for i in np.flatnonzero(recordings == r)) for r in np.unique(recordings)}
    np.testing.assert_allclose(made["of_recording"], np.array([of_recording[r] for r in segments.recordings]) + 5, rtol=1e-4, atol=1e-2)


def test_batch_size_and_bucket_lengths_never_change_a_folds_outputs(objective, folds):
    variables = learned(objective, folds, 1)
    (expected,) = predict(objective, [variables], [folds["valid"]], 8, 8.0)
    assert all(len(values) == len(folds["valid"]) for values in expected.values())
    for batch_size, growth in ((6, 3.0), (len(folds["valid"]) + 2, 8.0)):
        assert_close(predict(objective, [variables], [folds["valid"]], batch_size, growth)[0], expected)


def test_what_is_resident_never_changes_outputs(objective, folds, resident):
    variables = learned(objective, folds, 1)
    own = [variables], [folds["valid"]], 8, 8.0
    assert_close(predict(objective, *own, resident=resident)[0], predict(objective, *own)[0])


def test_several_variables_at_once_answer_as_one_by_one(objective, folds, resident):
    """Each has segments of its own: of other folds, lengths and numbers."""
    variables = [learned(objective, folds, seed) for seed in (1, 2, 3)]
    parts = [folds["valid"], folds["test"].take(np.arange(0, len(folds["test"]), 4)), folds["train"]]
    together = predict(objective, variables, parts, 8, 8.0)
    held = predict(objective, variables, parts, 8, 8.0, resident=resident)
    for own, part, made, other in zip(variables, parts, together, held, strict=True):
        (alone,) = predict(objective, [own], [part], 8, 8.0)
        assert_close(made, alone)
        assert_close(other, alone)


@pytest.mark.parametrize("resident", [False, True])
def test_parts_that_are_read_in_one_pass_are_answered_as_each_alone(objective, folds, resident):
    """Those of two folds and, of another member, of one; of which some lie beside one another in a batch."""
    memory = Resident(list(folds.values())) if resident else None
    variables = [learned(objective, folds, seed) for seed in (1, 2)]
    few = folds["train"].take(np.arange(5, 30, 3))
    parts = [(few, folds["valid"]), (folds["test"].take(np.arange(4)),)]
    mesh = meshes.make(2)
    placed = meshes.place_members(meshes.stack(variables), mesh)
    together = predict_rows(objective, mesh, placed, parts, 8, 4.0, memory)
    for i, own in enumerate(parts):
        assert len(together[i]) == len(own)
        for j, part in enumerate(own):
            alone = predict_rows(objective, mesh, placed, [(part,), (part,)], 8, 8.0, memory)
            assert_close(together[i][j], alone[i][0])


def test_the_same_segments_are_answered_by_each_of_several_variables(folds):
    made = predict(Plain(), [plain(factor) for factor in (1.0, 3.0)], [folds["valid"]] * 2, 8, 8.0)
    np.testing.assert_allclose(made[1]["total"], 3 * made[0]["total"], rtol=1e-5)
