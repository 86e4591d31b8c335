"""The prepared form: what is read back, and what is refused."""

import json

import numpy as np
import pytest
from make_corpus import Files

from jax_emossl.data import corpus, prepared
from jax_emossl.errors import UserError


@pytest.fixture
def folder(tmp_path):
    files = Files(tmp_path)
    corpus.prepare(files.features, files.labels, files.folds, files.out, unlabelled=True)
    return files.out


def test_frames_stay_on_disk(folder):
    loaded = prepared.load(folder)
    for fold in loaded.folds.values():
        assert isinstance(fold.frames, np.memmap)
        assert fold.frames.dtype == np.float32
        assert fold.offsets[-1] == len(fold.frames)


def test_the_arrays_are_plain_files(folder):
    assert np.load(folder / "train" / "frames.npy").shape == (600, 3)
    assert np.load(folder / "train" / "labels.npy").shape == (6, 2)
    assert (folder / "train" / "segments.csv").read_text().splitlines()[:2] == ["recording,index,start,end", "rec_a,0,0.0,1.0"]


def test_an_unknown_fold_is_refused(folder):
    with pytest.raises(UserError, match="no fold 'dev': choose one of train, train_unlabelled, valid, test"):
        prepared.load(folder).fold("dev")


def edit(folder, change):
    table = json.loads((folder / "corpus.json").read_text())
    change(table)
    (folder / "corpus.json").write_text(json.dumps(table))


DAMAGE = {
    "no corpus": lambda d: (d / "corpus.json").unlink(),
    "corpus.json is cut": lambda d: (d / "corpus.json").write_text((d / "corpus.json").read_text()[:200]),
    "another format": lambda d: edit(d, lambda t: t.update(format=99)),
    "a name is missing": lambda d: edit(d, lambda t: t.pop("emotions")),
    "a fold is missing": lambda d: edit(d, lambda t: t["summary"]["folds"].pop("valid")),
    "statistics of another dimension": lambda d: edit(d, lambda t: t["features"].append("more")),
    "a recording without statistics": lambda d: edit(d, lambda t: t["statistics"]["recordings"].pop("rec_c")),
    "frames are cut": lambda d: (d / "test" / "frames.npy").write_bytes((d / "test" / "frames.npy").read_bytes()[:-100]),
    "frames are missing": lambda d: (d / "test" / "frames.npy").unlink(),
    "frames are a pickle": lambda d: np.save(d / "test" / "frames.npy", np.array([{}]), allow_pickle=True),
    "frames of another dimension": lambda d: np.save(d / "test" / "frames.npy", np.zeros((300, 2), np.float32)),
    "offsets run backwards": lambda d: np.save(d / "test" / "offsets.npy", np.array([0, 200, 100, 300])),
    "labels out of range": lambda d: np.save(d / "test" / "labels.npy", np.full((3, 2), np.nan, np.float32)),
    "a row too few": lambda d: (d / "test" / "segments.csv").write_text("recording,index,start,end\nrec_d,0,0,1\n"),
    "a number is text": lambda d: (d / "test" / "segments.csv").write_text("recording,index,start,end\nrec_d,x,0,1\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_sentence(damage, folder):
    DAMAGE[damage](folder)
    with pytest.raises(UserError) as refused:
        prepared.load(folder)
    message = str(refused.value)
    assert str(folder) in message and message.endswith(".") and "\n" not in message


def test_last_frames_are_padded_on_the_left(folder):
    fold = prepared.load(folder).folds["test"]
    padded, cut = prepared.last_frames(fold, 130), prepared.last_frames(fold, 50)
    assert padded.shape == (3, 130, 3)
    assert not padded[:, :30].any()
    np.testing.assert_array_equal(padded[:, 30:], fold.frames.reshape(3, 100, 3))
    np.testing.assert_array_equal(cut, fold.frames.reshape(3, 100, 3)[:, 50:])
