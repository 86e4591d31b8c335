"""A TFDS dataset that `prepare --tfds` wrote trains as the prepared corpus does."""

import json
import shutil

import ml_collections
import numpy as np
import pytest
from make_corpus import Files

from jax_emossl.data import corpora, corpus, prepared, tfds
from jax_emossl.data.batches import Segments, in_memory
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler
from jax_emossl.errors import UserError

pytest.importorskip("importlib_resources", reason="importlib_resources, which TensorFlow Datasets needs, is not installed")
pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A prepared corpus, with `tfds/` in it; its recordings are not in the order of their names."""
    files = Files(tmp_path_factory.mktemp("corpus"))
    files.write_folds({"train": ["rec_b", "rec_a"], "valid": ["rec_c"], "test": ["rec_d"]})
    corpus.build(files.features, files.labels, files.folds, files.out, unlabelled=True, as_tfds=True)
    return prepared.load(files.out)


@pytest.fixture
def dataset(written, tmp_path, monkeypatch):
    """A copy of the dataset alone, to be damaged, and an empty cache."""
    monkeypatch.setenv("EMOSSL_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(written.path / "tfds", tmp_path / "dataset")


def load(folder):
    return corpora.load(ml_collections.ConfigDict({"prepared": f"tfds:{folder}", "corpus": ""}))


def change(folder, **fields):
    """Describes the dataset otherwise."""
    file = folder / tfds.DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_is_read_back_is_the_prepared_corpus_and_makes_the_same_batches(written, dataset):
    loaded = load(dataset)
    assert loaded.path != written.path
    for name in ("name", "features", "emotions", "hop", "train_recordings", "recordings", "frame_seconds", "summary"):
        assert getattr(loaded, name) == getattr(written, name)
    assert list(loaded.folds) == list(written.folds) and len(written.folds[prepared.UNLABELLED])
    for name, fold in written.folds.items():
        own = loaded.folds[name]
        assert own.recordings == fold.recordings
        for field in ("frames", "offsets", "labels", "indices", "intervals"):
            np.testing.assert_array_equal(getattr(own, field), getattr(fold, field))
    parts = []
    for one in (written, loaded):
        frontend = Frontend(one.features, one.train_statistics, 180.0, 5.0, 2, 2, 0.01)
        segments = Segments(one, ["train", prepared.UNLABELLED], frontend)
        parts.append(in_memory(segments, Sampler(segments.lengths, 4, 20), 3, 0, 6))
    for batch, other in zip(*parts, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(other[name], values)


def test_a_dataset_is_copied_once(dataset, monkeypatch):
    first = load(dataset).path
    monkeypatch.setattr(tfds, "copy", None)
    assert load(dataset).path == first == corpora.copy_of(f"tfds:{dataset}")


def test_where_there_is_no_dataset_is_said(tmp_path):
    with pytest.raises(UserError, match=f"data.prepared is tfds:{tmp_path}/nothing, but there is no TFDS dataset"):
        load(tmp_path / "nothing")


def test_a_dataset_of_somebody_else_is_refused(dataset):
    (dataset / tfds.DESCRIPTION).unlink()
    with pytest.raises(UserError, match="is a TFDS dataset without prepared.json: give one that prepare --tfds wrote"):
        load(dataset)


def test_examples_of_other_shapes_are_refused(dataset, written):
    fewer = [{**own.to_json(), "mean": [0.0], "variance": [1.0]} for own in (written.train_statistics, *written.statistics.values())]
    change(dataset, features=["F0"], statistics={"train": fewer[0], "recordings": dict(zip(written.statistics, fewer[1:], strict=True))})
    with pytest.raises(UserError, match="holds examples of other shapes than prepared.json says: write it anew"):
        load(dataset)


def test_missing_segments_are_refused(dataset, written):
    train = {**written.summary["folds"]["train"], "segments": 7}
    change(dataset, summary={**written.summary, "folds": {**written.summary["folds"], "train": train}})
    with pytest.raises(UserError, match="holds 6 segments of train where prepared.json tells of others"):
        load(dataset)
    assert not list(corpora.cache_dir().iterdir())


def test_a_damaged_dataset_is_refused(dataset):
    records = next(dataset.glob("*train.tfrecord*"))
    records.write_bytes(records.read_bytes()[:-50])
    with pytest.raises(UserError, match="is a damaged TFDS dataset"):
        load(dataset)
