import types

import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl import standards
from jax_emossl.data import normalisation
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend

TOWARD = {"location": np.full(4, 1.0, np.float32), "scale": np.full(4, 2.0, np.float32)}
VECTORS = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)


def basis(places):
    """Of segments whose recordings these are: all the others of a recording count."""
    return normalisation.basis("recording", places, np.arange(2 * len(places)).reshape(-1, 2), np.zeros(len(places), bool))


def plain(vectors, counted, toward, prior):
    """The same in NumPy, segment by segment: `counted` (S, S) is which others count."""
    location, scale = (np.tile(toward[name], (len(vectors), 1)).astype(np.float64) for name in ("location", "scale"))
    for s, others in enumerate(counted):
        rows, n = vectors[others], others.sum()
        if n:
            weight = n / (n + prior)
            location[s] = weight * rows.mean(0) + (1 - weight) * toward["location"]
        if n > 1:
            weight = (n - 1) / (n - 1 + prior)
            scale[s] = np.sqrt(weight * rows.var(0, ddof=1) + (1 - weight) * toward["scale"] ** 2)
    return location, scale + 1e-3


@pytest.mark.parametrize("prior", [0.0, 3.0, np.inf])
@pytest.mark.parametrize("places", [(0, 1, 0, 1, 0, 1), (2, 2, 2, 2, 2, 2), (3, 0, 1, 2, 3, 3)])
def test_standards_are_those_of_the_other_segments_shrunk_by_their_number(places, prior):
    counted = (np.array(places)[:, None] == places) & ~np.eye(6, dtype=bool)
    own = basis(places)
    made = standards.of_segments(own, VECTORS, own[:, 0], TOWARD, prior)
    for name, expected in zip(("location", "scale"), plain(VECTORS, counted, TOWARD, prior), strict=True):
        np.testing.assert_allclose(made[name], expected, rtol=1e-4)
    location, scale = plain(VECTORS, counted, TOWARD, prior)
    np.testing.assert_allclose(standards.standardised(VECTORS, own, TOWARD, prior), (VECTORS - location) / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", [0.0, 20.0])
def test_a_lone_segment_keeps_its_own_signal(prior):
    made = standards.standardised(VECTORS, basis(range(6)), TOWARD, prior)
    np.testing.assert_allclose(made, (VECTORS - 1) / (2 + 1e-3), rtol=1e-5)


def test_a_segments_own_vector_never_moves_its_standards():
    own, changed = basis((0, 1, 0, 1, 0, 1)), VECTORS.copy()
    changed[2] += 7
    before, after = (standards.of_segments(own, vectors, own[:, 0], TOWARD, 1.0)["location"] for vectors in (VECTORS, changed))
    moved = np.abs(after - before).max(1)
    assert moved[[0, 4]].min() > 1 and moved[[1, 2, 3, 5]].max() < 1e-5


def test_what_came_later_never_moves_causal_standards():
    times = np.arange(12).reshape(-1, 2)[[3, 0, 5, 1, 2, 4]]
    own, changed = normalisation.basis("causal", [0] * 6, times, np.zeros(6, bool)), VECTORS.copy()
    changed[4] += 7  # the third in time
    before, after = (standards.of_segments(own, vectors, own[:, 0], TOWARD, 1.0)["location"] for vectors in (VECTORS, changed))
    np.testing.assert_array_equal(np.abs(after - before).max(1) > 1e-5, times[:, 0] > 4)
    np.testing.assert_allclose(before[1], 1)  # the first has none before it


def test_a_constant_vector_has_a_scale_to_divide_by():
    made = standards.of_segments(basis((0, 1, 0, 1, 0, 1)), np.ones_like(VECTORS), np.arange(6), TOWARD, 0.0)
    assert np.isfinite(made["scale"]).all() and (made["scale"] > 0).all()


def test_the_training_folds_are_those_of_all_its_vectors():
    toward = standards.overall(jnp.array(VECTORS))
    np.testing.assert_allclose(toward["location"], VECTORS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(toward["scale"], VECTORS.std(0), rtol=1e-5)


@pytest.fixture(scope="module")
def folds(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    return {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid", "test")}


def test_a_segments_standards_do_not_depend_on_which_segments_are_beside_it(folds):
    """A comparison finishes every fold by itself, and some recordings of it."""
    own = folds["train"]
    vectors = np.random.default_rng(0).normal(size=(len(own), 4)).astype(np.float32)
    whole = np.asarray(standards.standardised(vectors, own.basis, TOWARD, 20.0))
    some = np.flatnonzero(np.isin(own.recordings, np.unique(own.recordings)[[1, 4]]))[::-1]
    made = standards.standardised(vectors[some], own.take(some).basis, TOWARD, 20.0)
    np.testing.assert_allclose(made, whole[some], rtol=1e-5, atol=1e-5)


def background(places, enrolled=()):
    """What `reference` looks at of segments; `take` gives their positions, too."""
    places = np.array(places, np.int32)

    def take(positions):
        return types.SimpleNamespace(place=places[positions], positions=positions)

    own = np.stack([np.arange(len(places)), places, places], 1)
    return types.SimpleNamespace(basis=own, enrolled=np.isin(np.arange(len(places)), enrolled), take=take)


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


def test_the_reference_has_all_enrolment():
    made = standards.reference(background([0]), background([0] * 100 + [1] * 10, enrolled=(1, 2, 50, 105)))
    assert {1, 2, 50} < set(made.positions.tolist()) and 105 not in made.positions and len(made.positions) <= 35


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
