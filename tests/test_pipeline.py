"""Batches from memory and from tf.data: what they hold, and that they are equal."""

import dataclasses
import sys

import numpy as np
import pytest
from make_corpus import Files

from jax_emossl.data import corpus, functionals, prepared
from jax_emossl.data.batches import Segments, in_memory
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler, Selection
from jax_emossl.data.pipeline import tf_data
from jax_emossl.errors import UserError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    files = Files(tmp_path_factory.mktemp("corpus"))
    spans = np.array([[0, 1], [1, 1.3], [2, 4.37]])
    files.write_labels({r: (labels, spans) for r, (labels, _) in files.label_entries.items()})
    corpus.build(files.features, files.labels, files.folds, files.out, unlabelled=True)
    return prepared.load(files.out)


@pytest.fixture(scope="module")
def frontend(loaded):
    return Frontend(loaded.features, loaded.train_statistics, prior=180.0, clip=5.0, pool=2, stack=2, frame_seconds=0.01)


@pytest.fixture(scope="module")
def segments(loaded, frontend):
    return Segments(loaded, ["train", prepared.UNLABELLED], frontend)


def test_rows_are_segments_seen_through_the_frontend(loaded, frontend, segments):
    selection = Sampler(segments.lengths, 4).indices(0, 0)
    batch = segments.gather(selection)
    for row, s in enumerate(selection.segments):
        steps = segments.steps(s)
        assert batch["num_steps"][row] == len(steps) == segments.lengths[s]
        np.testing.assert_array_equal(batch["features"][row, : len(steps)], steps)
        assert not batch["features"][row, len(steps) :].any()
    fold = loaded.folds["train"]
    scaling = frontend.location_and_scale(loaded.statistics[fold.recordings[2]])
    np.testing.assert_array_equal(segments.steps(2), frontend(fold.frames[fold.offsets[2] : fold.offsets[3]], *scaling))
    few = segments.gather_all_but_features(Selection(np.array([2, 0]), np.zeros(2, int), np.ones(2, np.float32), 100))
    np.testing.assert_array_equal(few["num_frames"], -(-np.diff(fold.offsets)[[2, 0]] // 2))


def test_a_batch_tells_which_segment_a_row_is_of_and_its_basis(segments):
    selection = Sampler(segments.lengths, 4).indices(0, 0)
    batch = segments.gather(selection)
    np.testing.assert_array_equal(batch["segment"], selection.segments)
    np.testing.assert_array_equal(batch["basis"], segments.basis[selection.segments])
    rest = segments.gather_all_but_features(selection)
    assert rest.keys() == batch.keys() - {"features"}
    for name in rest:
        np.testing.assert_array_equal(rest[name], batch[name])


def test_a_crop_is_a_piece_of_the_whole(segments):
    whole = segments.steps(2)
    crop = Selection(np.array([2]), np.array([7]), np.ones(1, np.float32), 20)
    batch = segments.gather(crop)
    np.testing.assert_allclose(batch["features"][0], whole[7:27], rtol=1e-6)
    assert batch["num_steps"] == [20] and batch["num_frames"] == [40]


def test_functionals_are_of_whole_segments_unpooled_however_they_are_cropped(loaded, frontend):
    segments = Segments(loaded, ["train"], frontend, with_functionals=True).take(np.array([4, 2]))
    fold = loaded.folds["train"]
    scaling = frontend.location_and_scale(loaded.statistics[fold.recordings[2]])
    plain = dataclasses.replace(frontend, pool=1, stack=1)
    frames = plain(fold.frames[fold.offsets[2] : fold.offsets[3]], *scaling)
    expected = functionals.of_segments(frames[None], np.array([len(frames)]))[0].astype(np.float32)
    for start, length in ((0, 40), (7, 20)):
        crop = Selection(np.array([1]), np.array([start]), np.ones(1, np.float32), length)
        np.testing.assert_array_equal(segments.gather(crop)["functionals"][0], expected)
    np.testing.assert_array_equal(segments.functionals[1], expected)
    assert "functionals" not in Segments(loaded, ["train"], frontend).gather(crop)


def test_joined_segments_have_their_own_functionals(loaded, frontend):
    parts = [Segments(loaded, [name], frontend, with_functionals=True) for name in ("train", "valid")]
    expected = np.concatenate([part.functionals for part in parts])
    np.testing.assert_array_equal(Segments.joined(parts).functionals, expected)


def test_unlabelled_segments_have_labels_of_0(loaded, segments):
    labelled = len(loaded.folds["train"])
    assert len(segments) > labelled
    assert not segments.labels[labelled:].any()


def test_a_subset_keeps_those_segments(loaded, frontend):
    whole = Segments(loaded, ["train"], frontend)
    few = whole.take(np.array([4, 1, 3])).take(np.array([0, 1]))
    np.testing.assert_array_equal(few.labels, whole.labels[[4, 1]])
    np.testing.assert_array_equal(few.steps(0), whole.steps(4))
    np.testing.assert_array_equal(few.basis, whole.basis[[4, 1]])
    assert few.whole is whole and few.positions.tolist() == [4, 1]


@pytest.mark.parametrize("crop", [0, 10])
def test_tf_data_equals_memory_batch_for_batch(loaded, frontend, crop):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    segments = Segments(loaded, ["train", prepared.UNLABELLED], frontend, with_functionals=True)
    sampler = Sampler(segments.lengths, 4, crop)
    expected = list(in_memory(segments, sampler, 3, 2, 11))
    batches = list(tf_data(segments, sampler, 3, 2, 11))
    assert len(batches) == len(expected) == 9
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_without_tensorflow_tf_data_says_so(segments, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="TensorFlow is not installed"):
        next(tf_data(segments, Sampler(segments.lengths, 4), 0, 0, 1))
