import types

import jax
import numpy as np
import pytest

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.predict import Resident
from jax_emossl.representation import overall, represent, standardised, standards

NAMES = list("abcd")
TOWARD = {"location": np.full(4, 1.0), "scale": np.full(4, 2.0)}


def segments(recordings, reliance):
    """What `standards` looks at of a fold; `reliance` by recording, or of all."""
    own = np.array([NAMES.index(r) for r in recordings], np.int32)
    by_name = reliance if isinstance(reliance, dict) else dict.fromkeys(recordings, reliance)
    return types.SimpleNamespace(recording=own, recording_names=NAMES, reliance=np.array([by_name[r] for r in recordings]))


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)


def of_train(vectors, recordings, reliance):
    made = standards({"train": vectors}, {"train": segments(recordings, reliance)}, TOWARD)
    return made["location"], made["scale"]


def test_a_recording_fully_relied_upon_has_its_own_standards(vectors):
    location, scale = of_train(vectors, "ababab", 1.0)
    for r, rows in enumerate((slice(0, None, 2), slice(1, None, 2))):
        np.testing.assert_allclose(location[r], vectors[rows].mean(0), rtol=1e-5)
        np.testing.assert_allclose(scale[r], vectors[rows].std(0) + 1e-3, rtol=1e-5)


def test_a_recording_never_relied_upon_has_the_training_folds(vectors):
    location, scale = of_train(vectors, "ababab", 0.0)
    np.testing.assert_allclose(location, 1)
    np.testing.assert_allclose(scale, 2 + 1e-3)


def test_standards_are_shrunk_by_mean_and_variance_as_much_as_a_recording_is_relied_upon(vectors):
    location, scale = of_train(vectors, "ababab", {"a": 0.25, "b": 0.5})
    for r, (weight, rows) in enumerate(((0.25, slice(0, None, 2)), (0.5, slice(1, None, 2)))):
        np.testing.assert_allclose(location[r], weight * vectors[rows].mean(0) + (1 - weight), rtol=1e-5)
        np.testing.assert_allclose((scale[r] - 1e-3) ** 2, weight * vectors[rows].var(0) + (1 - weight) * 4, rtol=1e-5)


def test_recordings_that_are_not_there_keep_the_training_folds(vectors):
    folds = {"train": segments("bab", 1.0), "valid": segments("ddd", 1.0)}
    made = standards({"train": vectors[:3], "valid": vectors[3:]}, folds, TOWARD)
    assert made["location"].shape == made["scale"].shape == (4, 4)
    np.testing.assert_allclose(made["location"][2], 1)
    np.testing.assert_allclose(made["scale"][2], 2 + 1e-3)
    np.testing.assert_allclose(made["location"][1], vectors[[0, 2]].mean(0), rtol=1e-5)
    np.testing.assert_allclose(made["location"][3], vectors[3:].mean(0), rtol=1e-5)


def test_a_constant_vector_has_a_scale_to_divide_by(vectors):
    flat = np.ones_like(vectors)
    _, scale = of_train(flat, "ababab", 1.0)
    np.testing.assert_allclose(scale[:2], 1e-3)


def test_vectors_are_standardised_by_their_recording(vectors):
    own = segments("abcabc", 1.0)
    by = standards({"train": vectors}, {"train": own}, TOWARD)
    made = standardised(vectors, own, by)
    for row, r in enumerate(own.recording):
        np.testing.assert_allclose(made[row], (vectors[row] - by["location"][r]) / by["scale"][r], rtol=1e-5)
    for r in range(3):
        np.testing.assert_allclose(made[own.recording == r].mean(0), 0, atol=1e-4)


def test_the_training_folds_are_those_of_all_its_vectors(vectors):
    toward = overall(vectors)
    np.testing.assert_allclose(toward["location"], vectors.mean(0))
    np.testing.assert_allclose(toward["scale"], vectors.std(0))


@pytest.mark.parametrize("resident", [False, True])
def test_folds_are_represented_by_what_the_encoder_pools_of_each_segment(resident, demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    folds = {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid")}
    encoder = Transformer(width=8, layers=1, heads=1)
    example = np.zeros((1, 8, frontend.dimension), np.float32), np.array([8])
    params = jax.jit(encoder.init)(jax.random.key(0), *example)["params"]
    pool = jax.jit(lambda *own: encoder.apply({"params": params}, *own).pooled())
    made = represent(encoder, params, folds, 8, 8.0, Resident(list(folds.values())) if resident else None)
    assert {name: own.shape for name, own in made.items()} == {name: (len(own), 2 * 2 * 8) for name, own in folds.items()}
    steps = folds["valid"].steps(7)
    np.testing.assert_allclose(made["valid"][7], pool(steps[None], np.array([len(steps)]))[0], rtol=1e-4, atol=1e-5)


def test_a_segments_standards_do_not_depend_on_which_folds_are_looked_at(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    folds = {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid", "test")}
    vectors = {name: np.random.default_rng(len(name)).normal(size=(len(own), 4)) for name, own in folds.items()}
    toward = overall(vectors["train"])
    whole, alone = standards(vectors, folds, toward), standards({"test": vectors["test"]}, {"test": folds["test"]}, toward)
    for name in ("location", "scale"):
        rows = np.unique(folds["test"].recording)
        np.testing.assert_array_equal(whole[name][rows], alone[name][rows])
        assert not np.array_equal(whole[name], alone[name])
