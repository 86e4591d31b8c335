"""The prepared form: what is read back, and what is refused."""

import dataclasses
import json
import os

import numpy as np
import pytest
from make_corpus import Files

from jax_emossl.data import corpus, prepared
from jax_emossl.errors import UserError


@pytest.fixture
def folder(tmp_path):
    files = Files(tmp_path)
    corpus.build(files.features, files.labels, files.folds, files.out, unlabelled=True)
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


def test_recordings_are_in_sorted_order(folder):
    assert prepared.load(folder).recordings == ("rec_a", "rec_b", "rec_c", "rec_d")


def test_a_frame_lasts_the_hop_and_a_word_its_share_of_the_training_segments(tmp_path):
    files = Files(tmp_path)
    files.write_words({r: np.array([[0.1, 0.3], [0.5, 0.9], [1.7, 1.8], [4.0, 5.0]]) for r in files.entries})
    for words, seconds in (("", 0.01), (files.words, 2 / 3)):  # 3 words in two segments of 1 s; the third holds none and is dropped
        corpus.build(files.features, files.labels, files.folds, files.out, words=words, overwrite=True)
        assert prepared.load(files.out).frame_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("blow", [OSError, KeyboardInterrupt])
def test_what_fails_at_the_last_moment_leaves_the_old_corpus(folder, blow, monkeypatch):
    rename = os.rename

    def fail(old, new):
        if old.name == "new":
            raise blow
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError if blow is OSError else blow), prepared.new_folder(folder, overwrite=True) as new:
        (new / "corpus.json").write_text("{}")
    assert prepared.load(folder).name == "F"
    assert list(folder.parent.iterdir()) == [folder]


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
    "files of other features": lambda d: edit(d, lambda t: t.update(sources={"acoustic": 2})),
    "speakers without a name": lambda d: edit(d, lambda t: t.update(speakers={"rec_a": 3})),
    "recordings of another kind": lambda d: edit(d, lambda t: t.update(unit="song")),
    "files without a number": lambda d: edit(d, lambda t: t.update(sources={"acoustic": 2, "faces": "1"})),
    "a recording without statistics": lambda d: edit(d, lambda t: t["statistics"]["recordings"].pop("rec_c")),
    "frames are cut": lambda d: (d / "test" / "frames.npy").write_bytes((d / "test" / "frames.npy").read_bytes()[:-100]),
    "frames are missing": lambda d: (d / "test" / "frames.npy").unlink(),
    "frames are a pickle": lambda d: np.save(d / "test" / "frames.npy", np.array([{}]), allow_pickle=True),
    "frames of another dimension": lambda d: np.save(d / "test" / "frames.npy", np.zeros((300, 2), np.float32)),
    "offsets run backwards": lambda d: np.save(d / "test" / "offsets.npy", np.array([0, 200, 100, 300])),
    "labels out of range": lambda d: np.save(d / "test" / "labels.npy", np.full((3, 2), np.nan, np.float32)),
    "a segment without length": lambda d: (d / "test" / "segments.csv").write_text(
        "recording,index,start,end\nrec_d,0,0,1\nrec_d,1,2,2\nrec_d,2,3,4\n"
    ),
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
    broken = dataclasses.replace(fold, frames=np.where(np.arange(3) == 1, np.nan, fold.frames))
    assert not prepared.last_frames(broken, 50)[..., 1].any() and prepared.last_frames(broken, 50)[..., 2].any()
