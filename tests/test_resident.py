"""What is resident gives the batches that are read from the files, and stays where `data.resident` says."""

import types

import jax
import numpy as np
import pytest

from jax_emossl import mesh as meshes
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler, in_order
from jax_emossl.errors import UserError
from jax_emossl.resident import SHARE, Resident, is_resident, nbytes, placement, with_features


@pytest.fixture(scope="module")
def folds(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    return {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def resident(folds):
    return Resident(list(folds.values()))


def assert_same_batch(resident, segments, selection):
    expected, made = segments.gather(selection), resident.gather(segments, selection)
    assert "features" not in made and made["places"].dtype == np.int32
    made = with_features(resident.steps, made)
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(made[name], array)


@pytest.mark.parametrize("crop", [0, 5])
@pytest.mark.parametrize("fold", ["train", "valid"])
def test_what_is_resident_makes_the_same_batches(fold, crop, folds, resident):
    """Also of segments that were taken, in any order, and with filler rows."""
    whole = folds[fold]
    for segments in (whole, whole.take(np.arange(len(whole))[::-3])):
        sampler = Sampler(segments.lengths, 5, crop, 1.3)
        selections = [sampler.indices(1, step) for step in range(sampler.steps_per_epoch)]
        assert any((selection.weight == 0).any() for selection in selections)
        for selection in [*selections, *(own for (own,) in in_order([segments.lengths], 5, 1.3))]:
            assert_same_batch(resident, segments, selection)


def test_a_batch_that_has_its_features_keeps_them(folds):
    batch = folds["valid"].gather(Sampler(folds["valid"].lengths, 4).indices(0, 0))
    assert with_features(None, batch) is batch


def test_an_accelerator_holds_halves_and_its_batches_are_float32(folds, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    valid = folds["valid"]
    held, selection = Resident([valid]), Sampler(valid.lengths, 5).indices(0, 0)
    assert held.steps.dtype == np.float16 and held.steps.nbytes == nbytes([valid])
    made = with_features(held.steps, held.gather(valid, selection))["features"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, valid.gather(selection)["features"], rtol=2**-11, atol=1e-7)


@pytest.fixture
def memory(monkeypatch):
    """Gives devices so many bytes."""
    return lambda number: monkeypatch.setattr(meshes, "device_memory", lambda: number)


def test_every_segment_is_held_once_whatever_is_taken_of_it(folds):
    train, valid = folds["train"], folds["valid"]
    held = Resident([train.take(np.arange(3)), valid, train])
    assert held.steps.nbytes == nbytes([train, valid]) == 4 * train.dimension * (train.lengths.sum() + valid.lengths.sum())
    expected = np.concatenate([fold.steps(i) for fold in (train, valid) for i in range(len(fold))])
    np.testing.assert_array_equal(held.steps, expected)


@pytest.mark.parametrize(
    ("how", "size", "together", "expected"),
    [
        ("auto", SHARE * 1000, True, True),
        ("auto", SHARE * 1000 + 1, True, False),
        ("auto", 1, False, False),
        ("memory", 1000, True, True),
        ("memory", 1000, False, True),
        ("mapped", 1, True, False),
    ],
)
def test_model_steps_stay_where_they_are_asked_to_and_fit(how, size, together, expected, memory, folds):
    memory(1000)
    assert is_resident(how, size, together) is expected
    assert ("resident" if expected else "mapped") in placement(how, size, together)


def test_what_is_mapped_is_not_made(folds, memory):
    memory(10**9)
    parts = [folds["valid"]]
    assert Resident.of("mapped", parts, True) is None and Resident.of("auto", parts, False) is None
    assert len(Resident.of("auto", parts, True).steps) == folds["valid"].lengths.sum()


def test_model_steps_that_no_device_holds_are_refused(memory):
    memory(1e9)
    with pytest.raises(UserError, match=r"take 2\.5 GB where a device has 1\.0 GB: give --config.data.resident=mapped"):
        is_resident("memory", 2.5e9, True)


def test_a_device_has_what_it_says_and_a_cpu_what_its_container_may_use(monkeypatch, tmp_path):
    file = tmp_path / "memory.max"
    monkeypatch.setattr(meshes, "_CONTAINER", file)
    whole = meshes.device_memory()
    assert whole > 1e8
    for text, expected in (("max\n", whole), ("12345\n", 12345), (f"{2 * whole}\n", whole)):
        file.write_text(text)
        assert meshes.device_memory() == expected
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 77})])
    assert meshes.device_memory() == 77
