import types

import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl import standards
from jax_emossl.data.batches import Recordings, Segments
from jax_emossl.data.frontend import Frontend

TOWARD = {"location": np.full(4, 1.0, np.float32), "scale": np.full(4, 2.0, np.float32)}
VECTORS = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)


def recordings(places, reliance, number=4):
    """`reliance` is one for all, or that of every recording."""
    return Recordings(np.array(places, np.int32), np.broadcast_to(np.float32(reliance), number))


def plain(vectors, own, toward):
    """The same in NumPy, recording by recording."""
    location, scale = (np.tile(toward[name], (len(own.reliance), 1)) for name in ("location", "scale"))
    for r in np.unique(own.place):
        rows, weight = vectors[own.place == r], own.reliance[r]
        location[r] = weight * rows.mean(0) + (1 - weight) * toward["location"]
        scale[r] = np.sqrt(weight * rows.var(0) + (1 - weight) * toward["scale"] ** 2)
    return location, scale + 1e-3


@pytest.mark.parametrize("reliance", [0.0, 0.25, 1.0, (0.1, 0.6, 1.0, 0.3)])
@pytest.mark.parametrize("places", [(0, 1, 0, 1, 0, 1), (2, 2, 2, 2, 2, 2), (3, 0, 1, 2, 3, 3)])
def test_standards_are_shrunk_by_mean_and_variance_as_much_as_a_recording_is_relied_upon(places, reliance):
    own = recordings(places, reliance)
    made = standards.of_recordings(VECTORS, own, TOWARD)
    for name, expected in zip(("location", "scale"), plain(VECTORS, own, TOWARD), strict=True):
        np.testing.assert_allclose(made[name], expected, rtol=1e-4)


def test_a_recording_fully_relied_upon_has_its_own_standards():
    made = standards.of_recordings(VECTORS, recordings((0, 1, 0, 1, 0, 1), 1.0), TOWARD)
    for r in (0, 1):
        np.testing.assert_allclose(made["location"][r], VECTORS[r::2].mean(0), rtol=1e-5)
        np.testing.assert_allclose(made["scale"][r], VECTORS[r::2].std(0) + 1e-3, rtol=1e-5)


@pytest.mark.parametrize(("places", "reliance"), [((1, 1, 1, 1, 1, 1), 1.0), ((0, 1, 2, 3, 0, 2), 0.0)])
def test_a_recording_without_segments_or_reliance_has_the_training_folds(places, reliance):
    made = standards.of_recordings(VECTORS, recordings(places, reliance), TOWARD)
    rows = np.array([0, 2, 3] if reliance else [0, 1, 2, 3])
    np.testing.assert_allclose(made["location"][rows], 1)
    np.testing.assert_allclose(made["scale"][rows], 2 + 1e-3)


def test_a_constant_vector_has_a_scale_to_divide_by():
    made = standards.of_recordings(np.ones_like(VECTORS), recordings((0, 1, 0, 1, 0, 1), 1.0), TOWARD)
    np.testing.assert_allclose(made["scale"][:2], 1e-3)


def test_vectors_are_standardised_by_their_recording():
    own = recordings((0, 1, 2, 0, 1, 2), 1.0)
    location, scale = plain(VECTORS, own, TOWARD)
    made = np.asarray(standards.standardised(VECTORS, own, TOWARD))
    np.testing.assert_allclose(made, (VECTORS - location[own.place]) / scale[own.place], rtol=1e-4, atol=1e-5)
    for r in range(3):
        np.testing.assert_allclose(made[own.place == r].mean(0), 0, atol=1e-4)


def test_the_training_folds_are_those_of_all_its_vectors():
    toward = standards.overall(jnp.array(VECTORS))
    np.testing.assert_allclose(toward["location"], VECTORS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(toward["scale"], VECTORS.std(0), rtol=1e-5)


@pytest.fixture(scope="module")
def folds(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    return {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid", "test")}


def test_a_segments_standards_do_not_depend_on_which_folds_are_looked_at(folds):
    """A comparison finishes every fold by itself; recordings are never in two."""
    vectors = {name: np.random.default_rng(i).normal(size=(len(own), 4)).astype(np.float32) for i, (name, own) in enumerate(folds.items())}
    places = np.concatenate([own.by_recording.place for own in folds.values()])
    together = Recordings(places, folds["train"].by_recording.reliance)
    whole = np.asarray(standards.standardised(np.concatenate(list(vectors.values())), together, TOWARD))
    alone = [standards.standardised(vectors[name], own.by_recording, TOWARD) for name, own in folds.items()]
    np.testing.assert_allclose(whole, np.concatenate(alone), rtol=1e-5, atol=1e-5)


def background(places):
    """What `reference` looks at of segments; `take` gives their positions, too."""
    places = np.array(places, np.int32)

    def take(positions):
        return types.SimpleNamespace(place=places[positions], positions=positions)

    return types.SimpleNamespace(by_recording=Recordings(places, np.ones(9, np.float32)), take=take)


def test_the_reference_is_evenly_spaced_over_each_recording_that_train_has():
    # 200 segments of recordings 0 and 5, alternating, then 10 of recording 2 and 70 of recording 7.
    whole = background([0, 5] * 100 + [2] * 10 + [7] * 70)
    made = standards.reference(background([5, 2, 5]), whole)
    assert made.positions.tolist() == sorted(made.positions)
    assert dict(zip(*np.unique(made.place, return_counts=True), strict=True)) == {2: 10, 5: 32}
    assert made.positions[made.place == 2].tolist() == list(range(200, 210))  # all, where there are fewer
    among = (made.positions[made.place == 5] - 1) // 2  # their places among the 100 of the recording
    assert (among[0], among[-1]) == (0, 99)
    assert set(np.diff(among)) == {3, 4}


def test_the_reference_of_many_recordings_is_bounded():
    whole = background(np.repeat(np.arange(500), 40).tolist())
    made = standards.reference(whole, whole)
    assert set(np.unique(made.place, return_counts=True)[1]) == {4}  # of 2048 together
    every = background(np.repeat(np.arange(3000), 2).tolist())
    assert len(standards.reference(every, every).place) == 3000  # one of each, at least


def test_a_reference_never_has_a_recording_that_train_has_not(folds):
    train = folds["train"]
    few = train.take(np.flatnonzero(np.isin(train.recordings, np.unique(train.recordings)[[1, 4]]))[::4])
    made = standards.reference(few, train)
    assert set(made.recordings) == set(few.recordings)
    expected = np.flatnonzero(np.isin(train.recordings, few.recordings))  # each has fewer than 64
    np.testing.assert_array_equal(made.positions, expected)
    assert len(made) > len(few)
