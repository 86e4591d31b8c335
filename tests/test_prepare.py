"""From `.csd` files to a prepared corpus: what is kept, what is accounted for, and what is refused."""

import errno
import functools
import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from make_corpus import EMOTIONS, FEATURES, FOLDS, Files, grid, recording, segments

from jax_emossl import prepare
from jax_emossl.data import corpus, csd, folds, prepared
from jax_emossl.data.account import describe


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def build(files, **options) -> prepared.Corpus:
    corpus.build(files.features, files.labels, files.folds, files.out, **options)
    return prepared.load(files.out)


def account(loaded: prepared.Corpus) -> dict[str, tuple[int, list[str]]]:
    return {row["reason"]: (row["count"], row["examples"]) for row in loaded.summary["account"]}


def contents(folder) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# What is kept.


def test_every_segment_holds_its_frames(files):
    loaded = build(files)
    assert (loaded.features, loaded.emotions) == (tuple(FEATURES), tuple(EMOTIONS))
    assert (loaded.hop, loaded.name, loaded.synthetic) == (0.01, "F", False)
    assert loaded.train_recordings == tuple(FOLDS["train"])
    assert account(loaded) == {}
    for name, members in FOLDS.items():
        fold = loaded.folds[name]
        assert fold.recordings == [r for r in members for _ in range(3)]
        assert fold.indices.tolist() == [0, 1, 2] * len(members)
        for s, (r, index) in enumerate(zip(fold.recordings, fold.indices, strict=True)):
            labels, spans = files.label_entries[r]
            np.testing.assert_array_equal(fold.labels[s], labels[index])
            np.testing.assert_array_equal(fold.intervals[s], spans[index])
            first = round(spans[index, 0] * 100)
            np.testing.assert_array_equal(fold.frames[fold.offsets[s] : fold.offsets[s + 1]], files.entries[r][0][first : first + 100])


def test_unlabelled_keeps_the_rest_of_the_training_recordings(files):
    loaded = build(files, unlabelled=True)
    rest = loaded.folds[prepared.UNLABELLED]
    assert rest.recordings == ["rec_a", "rec_b"]  # of 0.5 s, 0.5 s and 2 s, only the last is long enough
    assert rest.labels.shape == (2, 0)
    assert rest.intervals.tolist() == [[4.0, 6.0]] * 2
    np.testing.assert_array_equal(rest.frames[:200], files.entries["rec_a"][0][400:])


def test_long_stretches_without_labels_are_cut_to_chunks_at_gaps(files):
    frames, intervals = recording(9, 3600)
    present = np.r_[0:1000, 1200:3600]  # two seconds are missing from 10 s on
    files.write_features({"rec_a": (frames[present], intervals[present])})
    rest = build(files, unlabelled=True).folds[prepared.UNLABELLED]
    chunks = rest.intervals[[r == "rec_a" for r in rest.recordings]]
    np.testing.assert_allclose(chunks, [[4, 10], [12, 22], [22, 32], [32, 36]])


def test_words_are_averaged_and_then_cut(files):
    spans = np.array([[3.2, 3.4], [0.1, 0.3], [0.9, 1.2], [7.0, 8.0]])  # unsorted; the last has no frames
    files.write_words(dict.fromkeys(files.entries, spans))
    loaded = build(files, words=files.words)
    fold = loaded.folds["test"]
    frames = files.entries["rec_d"][0]
    assert loaded.hop is None
    assert fold.indices.tolist() == [0, 2]
    assert fold.offsets.tolist() == [0, 2, 3]
    expected = np.stack([frames[10:30].mean(0), frames[90:120].mean(0), frames[320:340].mean(0)])
    np.testing.assert_allclose(fold.frames, expected, rtol=1e-5)


def test_the_pitch_of_words_that_are_mostly_unvoiced_does_not_count(files):
    files.write_words({r: grid(60, 0.1) for r in files.entries})
    loaded = build(files, words=files.words)
    means = files.entries["rec_d"][0].reshape(60, 10, 3).mean(1, dtype=np.float64)
    voiced = means[:, 1] > 0.5
    assert 0 < voiced.sum() < 60
    np.testing.assert_allclose(loaded.statistics["rec_d"].mean, [means[voiced, 0].mean(), *means[:, 1:].mean(0)], rtol=1e-5)


def test_a_recording_without_words_is_dropped_and_leaves_the_statistics_alone(files):
    files.write_words({r: np.array([[0.1, 0.3], [3.2, 3.4]]) for r in files.entries if r != "rec_b"})
    loaded = build(files, words=files.words)
    assert account(loaded)["recordings dropped: no words"] == (1, ["rec_b"])
    assert loaded.train_recordings == ("rec_a",)
    np.testing.assert_allclose(loaded.train_statistics.mean, loaded.statistics["rec_a"].mean)


def test_mosei_conventions_for_files_without_names(files):
    covarep = {r: (np.tile(frames, (1, 25))[:, :74], intervals) for r, (frames, intervals) in files.entries.items()}
    csd.write(files.features, "COVAREP", ((r, *e) for r, e in covarep.items()))
    labels = {r: (np.full((3, 7), -1.0) if r == "rec_a" else np.ones((3, 7)), spans) for r, (_, spans) in files.label_entries.items()}
    files.write_labels(labels, names=None)
    loaded = build(files)
    assert loaded.features == corpus.COVAREP_DIMENSIONS
    assert loaded.emotions == ("happy", "sad", "anger", "surprise", "disgust", "fear")  # sentiment is none
    assert loaded.folds["train"].labels[0].tolist() == [0] * 6


def test_label_names_on_request(files):
    files.write_labels(names=None)
    assert build(files, label_names=["calm", "sentiment"]).emotions == ("calm",)


def test_synthetic_features_are_marked(files):
    files.write_features(synthetic=True)
    assert build(files, name="toy").synthetic


# Several files of features.


@pytest.fixture
def beside(files):
    """Writes another file of features beside the first, of `number` rows of `hop` seconds for each recording: `path, entries`."""

    def make(root, hop, number, width, names=None, changed={}):  # noqa: B006
        rng = np.random.default_rng(len(root))
        entries = {r: (rng.normal(size=(number, width)).astype(np.float32), grid(number, hop)) for r in files.entries} | changed
        path = files.features.with_name(f"{root}.csd")
        csd.write(path, root, ((r, *e) for r, e in entries.items() if e), {"dimension names": names} if names else {})
        return path, entries

    return make


def several(files, *paths, **options) -> prepared.Corpus:
    corpus.build([files.features, *paths], files.labels, files.folds, files.out, **options)
    return prepared.load(files.out)


def test_slow_rows_are_repeated_and_fast_ones_averaged_over_the_first_files_frames(files, beside):
    alone = build(files)
    faces, slow = beside("faces", 0.04, 150, 2, ["smile", "frown"])
    fast_file, fast = beside("fast", 0.005, 1200, 1)
    loaded = several(files, faces, fast_file, overwrite=True)
    assert loaded.features == (*FEATURES, "smile", "frown", "dimension_0")
    assert (loaded.sources, loaded.hop, loaded.name) == ({"acoustic": 3, "faces": 2, "fast": 1}, 0.01, "F")
    assert account(loaded) == {}
    for name, fold in loaded.folds.items():
        for own, its in ((fold.offsets, alone.folds[name].offsets), (fold.labels, alone.folds[name].labels)):
            np.testing.assert_array_equal(own, its)
        np.testing.assert_array_equal(fold.frames[:, :3], alone.folds[name].frames)
        for s, r in enumerate(fold.recordings):
            frame = round(fold.intervals[s, 0] * 100) + np.arange(100)
            own = fold.frames[fold.offsets[s] : fold.offsets[s + 1]]
            np.testing.assert_array_equal(own[:, 3:5], slow[r][0][frame // 4])
            np.testing.assert_allclose(own[:, 5], fast[r][0][:, 0].reshape(-1, 2).mean(1)[frame], rtol=1e-4, atol=1e-6)
    every = np.repeat(slow["rec_a"][0], 4, 0).astype(float)
    np.testing.assert_allclose(loaded.statistics["rec_a"].mean[3:5], every.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(loaded.statistics["rec_a"].mean[:3], alone.statistics["rec_a"].mean)


def test_what_another_file_lacks_counts_as_the_mean_and_is_counted(files, beside):
    half = np.ones((75, 2), np.float32)
    half[3] = np.inf
    changed = {"rec_a": None, "rec_b": (half, grid(75, 0.04)), "rec_d": (np.zeros((150, 3), np.float32), grid(150, 0.04))}
    faces, slow = beside("faces", 0.04, 150, 2, changed=changed)
    loaded = several(files, faces)
    assert account(loaded) == {
        "recordings without faces, which count as the mean there": (2, ["rec_a", "rec_d (3 dimensions where others have 2)"]),
        "frames without faces, which count as the mean there": (600 + 300 + 4 + 600, ["rec_a", "rec_b", "rec_d"]),
        "non-finite values of faces, which are left out": (2, ["rec_b"]),
    }
    train = loaded.folds["train"]
    assert np.isnan(train.frames[:300, 3:]).all() and not np.isnan(train.frames[:, :3]).any()  # rec_a: its own frames are kept
    assert np.isnan(loaded.statistics["rec_a"].mean[3:]).all()
    assert np.flatnonzero(np.isnan(train.frames[300:400, 3])).tolist() == [12, 13, 14, 15] and np.nanmin(train.frames[300:400, 3:]) == 1
    assert np.isnan(train.frames[500:600, 3:]).all()  # rec_b, from 3 s on
    np.testing.assert_allclose(loaded.train_statistics.mean[3:], 1)  # of what rec_b has


def test_names_that_clash_are_told_apart_by_their_file(files, beside):
    faces, _ = beside("faces", 0.04, 150, 2, ["energy", "smile"])
    (files.features.parent / "again").mkdir()
    more = faces.rename(files.features.parent / "again" / "faces.csd")
    faces, _ = beside("faces", 0.04, 150, 2, ["energy", "smile"])
    loaded = several(files, faces, more)
    assert loaded.features == (*FEATURES, "faces.energy", "smile", "faces_2.energy", "faces_2.smile")
    assert loaded.sources == {"acoustic": 3, "faces": 2, "faces_2": 2}


def test_words_average_the_frames_of_all_files(files, beside):
    faces, slow = beside("faces", 0.04, 150, 2)
    files.write_words(dict.fromkeys(files.entries, np.array([[0.08, 0.32]])))
    fold = several(files, faces, words=files.words).folds["test"]
    np.testing.assert_allclose(fold.frames[0, :3], files.entries["rec_d"][0][8:32].mean(0), rtol=1e-5)
    np.testing.assert_allclose(fold.frames[0, 3:], slow["rec_d"][0][2:8].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("damage", "mentions"),
    [
        (lambda path, files: path.unlink(), ["faces.csd", "does not exist"]),
        (lambda path, files: csd.write(path, "faces", [("other", np.ones((3, 2)), grid(3))]), ["F.csd", "faces.csd", "no recording id in common"]),
        (lambda path, files: (path.unlink(), path.symlink_to(files.features)), ["faces.csd", "given twice", "name each file once"]),
        (lambda path, files: csd.write(path, "faces", [("rec_a", np.ones((3, 0)), grid(3))]), ["faces.csd", "0 dimensions"]),
        (lambda path, files: csd.write(path, "faces", [("rec_a", np.ones((3, 2)), grid(2))]), ["faces.csd", "'rec_a'", "lengths must agree"]),
        (lambda path, files: csd.write(path, "faces", [("rec_a", np.ones((3, 2)), -grid(3))]), ["faces.csd", "'rec_a'", "correct its interval"]),
    ],
)  # fmt: skip
def test_bad_further_files(damage, mentions, files, beside, capsys, monkeypatch):
    path, _ = beside("faces", 0.04, 150, 2)
    damage(path, files)
    error = refusal([*files.arguments, "--features", path], capsys, monkeypatch)
    assert all(mention in error for mention in mentions), error
    assert not files.out.exists()


# Speakers.


SPEAKERS = {"rec_a": "ann", "rec_b": "ann", "rec_c": "bea", "rec_d": "cid"}


def write_speakers(files, speakers):
    path = files.features.with_name("speakers.json")
    path.write_text(json.dumps(speakers))
    return path


def test_a_recording_has_the_statistics_of_all_that_its_speaker_says(files):
    alone = build(files)
    frames, intervals = files.entries["rec_b"]
    files.write_features({"rec_b": (frames + 5, intervals)})
    loaded = build(files, speakers=write_speakers(files, SPEAKERS), overwrite=True)
    assert (loaded.speakers, loaded.unit, alone.speakers, alone.unit) == (SPEAKERS, "speaker", {}, "recording")
    a, b = (loaded.statistics[r] for r in ("rec_a", "rec_b"))
    assert a.seconds == b.seconds == 12.0
    both = np.concatenate([files.entries["rec_a"][0], frames + 5])[:, 2].astype(float)
    for own in (a, b):
        np.testing.assert_allclose([own.mean[2], own.variance[2]], [both.mean(), both.var()])
    for r in ("rec_c", "rec_d"):
        np.testing.assert_array_equal(loaded.statistics[r].mean, alone.statistics[r].mean)
    assert loaded.units(["rec_b", "rec_d"]) == ["ann", "cid"] and loaded.all_units == ("ann", "bea", "cid")
    assert loaded.folds["train"].recordings[::3] == ["rec_a", "rec_b"]  # segments are still known by their recording
    assert "speakers: 1 train, 1 valid, 1 test" in describe(loaded.summary)


def test_a_recording_without_a_speaker_counts_for_itself_and_is_counted(files):
    loaded = build(files, speakers=write_speakers(files, {"rec_a": "ann", "rec_z": "zoe"}))
    assert loaded.speakers == {"rec_a": "ann"} and loaded.all_units == ("ann", "rec_b", "rec_c", "rec_d")
    assert account(loaded) == {"recordings without a speaker, which count for themselves": (3, ["rec_b", "rec_c", "rec_d"])}


def test_standard_folds_stand_although_speakers_are_in_several_which_is_told(files, capsys, monkeypatch):
    """Each fold then has statistics of its own: nothing of the test fold enters the training fold's."""
    monkeypatch.setattr(folds, "_standard_mosei_folds", lambda: FOLDS)
    files.folds = "cmu_mosei"
    alone = build(files)
    assert (alone.unit, capsys.readouterr().err.count("notice")) == ("video", 0)
    loaded = build(files, speakers=write_speakers(files, {"rec_a": "ann", "rec_d": "ann", "rec_c": "bea"}), overwrite=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("notice: 1 speaker is in more than one fold of cmu_mosei, ann the first")
    assert loaded.unit == "speaker"
    for r in files.entries:
        np.testing.assert_array_equal(loaded.statistics[r].mean, alone.statistics[r].mean)


@pytest.mark.parametrize(
    ("speakers", "mentions"),
    [
        ({"rec_a": "ann", "rec_d": "ann"}, ["folds.json", "'ann'", "train (rec_a) and test (rec_d)", "keep all of a speaker in one"]),
        ({"rec_x": "ann"}, ["speakers.json", "names no recording of", "folds.json"]),
        ({"rec_a": 7}, ["speakers.json", "'rec_a'", "no name of a speaker"]),
    ],
)
def test_bad_speakers(speakers, mentions, files, capsys, monkeypatch):
    error = refusal([*files.arguments, "--speakers", write_speakers(files, speakers)], capsys, monkeypatch)
    assert all(mention in error for mention in mentions), error
    assert not files.out.exists()


# What is dropped, repaired or clipped.


def test_non_finite_values_are_marked_and_count_in_no_statistics(files):
    frames, intervals = recording(0)
    frames[50:60, 2] = [np.nan, np.inf] * 5
    files.write_features({"rec_a": (frames, intervals)})
    loaded = build(files)
    mean = np.delete(frames[:, 2], np.s_[50:60]).mean(dtype=np.float64)
    assert np.isnan(loaded.folds["train"].frames[50:60, 2]).all() and np.isnan(loaded.folds["train"].frames).sum() == 10
    np.testing.assert_allclose(loaded.statistics["rec_a"].mean[2], mean)
    assert account(loaded) == {"non-finite values, which count as the mean": (10, ["rec_a"])}


@pytest.mark.parametrize("words", [False, True])
def test_a_dimension_without_any_value_has_no_statistics(files, words):
    frames, intervals = recording(0)
    frames[:, 2] = np.nan
    files.write_features({"rec_a": (frames, intervals)})
    files.write_words({r: grid(60, 0.1) for r in files.entries})
    loaded = build(files, words=files.words if words else "")
    own = np.array(loaded.folds["train"].recordings) == "rec_a"
    assert np.isnan(loaded.folds["train"].frames[: loaded.folds["train"].offsets[own.sum()], 2]).all()
    assert np.isnan(loaded.statistics["rec_a"].mean[2])
    np.testing.assert_allclose(loaded.train_statistics.mean[2], loaded.statistics["rec_b"].mean[2])


def test_recordings_of_another_dimension_are_dropped(files):
    files.write_features({"rec_b": (np.zeros((600, 2), np.float32), grid(600))})
    loaded = build(files)
    assert account(loaded)["recordings dropped: feature dimension is not 3"] == (1, ["rec_b (2)"])
    assert account(loaded)["segments dropped: recording without usable features"] == (3, ["rec_b"])
    assert "rec_b" not in loaded.statistics


def test_intensities_are_clipped(files):
    _, spans = segments(0)
    files.write_labels({"rec_a": (np.array([[10 / 3, 0], [-1, 11 / 4], [3.75, 3]]), spans)})
    loaded = build(files)
    np.testing.assert_allclose(loaded.folds["train"].labels[:3], [[3, 0], [0, 2.75], [3, 3]])
    assert account(loaded) == {"intensities clipped to [0, 3]": (3, ["rec_a"])}


def test_unsorted_frames_are_sorted(files):
    expected = build(files).folds["train"].frames
    frames, intervals = files.entries["rec_a"]
    order = np.random.default_rng(0).permutation(len(frames))
    files.write_features({"rec_a": (frames[order], intervals[order])})
    loaded = build(files, overwrite=True)
    np.testing.assert_array_equal(loaded.folds["train"].frames, expected)
    assert account(loaded) == {"recordings whose frames were sorted by start": (1, ["rec_a"])}


def test_what_is_missing_or_outside_is_counted(files):
    del files.entries["rec_b"]
    files.label_entries["rec_z"] = segments(9)
    files.label_entries["rec_a"] = (np.ones((2, 2)), np.array([[0, 1], [6.5, 7]]))
    files.write_features()
    files.write_labels()
    files.write_folds({**FOLDS, "test": ["rec_d", "rec_y"]})
    loaded = build(files)
    assert account(loaded) == {
        "labelled recordings dropped: no features": (1, ["rec_b"]),
        "segments dropped: recording without usable features": (3, ["rec_b"]),
        "segments dropped: no frames": (1, ["rec_a[1]"]),
        "fold recordings without labelled segments": (1, ["rec_y"]),
    }
    assert loaded.summary["outside"] == {"recordings": 1, "segments": 3, "examples": ["rec_z"]}
    text = describe(loaded.summary)
    assert "segments dropped: no frames: 1 (rec_a[1])" in text
    assert "outside the folds: 3 segments of 1 recordings (rec_z)" in text


def test_nothing_of_the_other_folds_leaks_into_training(files):
    build(files, unlabelled=True)
    before = contents(files.out)
    rng = np.random.default_rng(7)
    files.write_features({r: (rng.normal(5, 9, (600, 3)).astype(np.float32), grid(600)) for r in ("rec_c", "rec_d")})
    files.write_labels({r: (3 - segments(i)[0], segments(i)[1]) for i, r in ((2, "rec_c"), (3, "rec_d"))})
    build(files, unlabelled=True, overwrite=True)
    after = contents(files.out)
    assert before["valid/frames.npy"] != after["valid/frames.npy"]
    for name in before:
        if name.startswith("train"):
            assert before[name] == after[name], name
    old, new = (json.loads(c["corpus.json"])["statistics"] for c in (before, after))
    assert old["train"] == new["train"]
    assert old["recordings"]["rec_a"] == new["recordings"]["rec_a"]


# Bad input: one sentence that names file and entry, exit code 2, no traceback, nothing left behind.


def edit(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def replace(entry, name, values, file="features", root="acoustic"):
    """Damage that replaces one dataset of one entry."""

    def damage(files):
        def change(opened):
            del opened[f"{root}/data/{entry}/{name}"]
            if values is not None:
                opened[f"{root}/data/{entry}/{name}"] = values

        edit(getattr(files, file), change)

    return damage


def in_labels(entry, name, values):
    return replace(entry, name, values, "labels", "All Labels")


def interval(row, values):
    spans = grid(600)
    spans[row] = values
    return spans


def truncate(files):
    os.truncate(files.features, files.features.stat().st_size // 2)


def set_folds(folds):
    return lambda files: files.write_folds(folds)


def exists(files):
    files.out.mkdir(parents=True)
    (files.out / "thesis.txt").write_text("precious")


def widen_one_label(files):
    files.write_labels({"rec_b": (np.ones((3, 4)), segments(1)[1])})


def other_words(files):
    files.write_words({"elsewhere": grid(3)})


def full_disk(monkeypatch):
    """Whatever is written of the prepared form goes to a device without space."""
    monkeypatch.setattr(prepared, "open", lambda *args, **kwargs: open("/dev/full", "wb"), raising=False)


BAD = {
    "missing file": (lambda f: f.features.unlink(), ["F.csd", "does not exist"]),
    "a folder": (lambda f: (f.labels.unlink(), f.labels.mkdir()), ["L.csd", "not a file"]),
    "text file": (lambda f: f.features.write_text("features\n1,2,3\n"), ["F.csd", "HDF5"]),
    "empty file": (lambda f: f.features.write_bytes(b""), ["F.csd", "HDF5"]),
    "pickle file": (lambda f: f.labels.write_bytes(pickle.dumps({"a": [1.0]})), ["L.csd", "HDF5"]),
    "truncated file": (truncate, ["F.csd", "truncated"]),
    "no root group": (lambda f: edit(f.features, lambda h: h.pop("acoustic")), ["F.csd", "0 root groups"]),
    "several root groups": (lambda f: edit(f.features, lambda h: h.create_group("other")), ["F.csd", "2 root groups"]),
    "root without data": (lambda f: edit(f.features, lambda h: h.move("acoustic/data", "acoustic/dta")), ["F.csd", "'acoustic/data'"]),
    "root is no group": (
        lambda f: edit(f.features, lambda h: (h.pop("acoustic"), h.create_dataset("acoustic", data=[1]))),
        ["F.csd", "no group 'acoustic'"],
    ),
    "entry is no group": (
        lambda f: edit(f.features, lambda h: (h.pop("acoustic/data/rec_a"), h.create_dataset("acoustic/data/rec_a", data=[1]))),
        ["F.csd", "rec_a"],
    ),
    "no features": (replace("rec_b", "features", None), ["F.csd", "entry 'rec_b'", "no 'features'"]),
    "no intervals": (replace("rec_b", "intervals", None), ["F.csd", "entry 'rec_b'", "no 'intervals'"]),
    "labels without features": (in_labels("rec_c", "features", None), ["L.csd", "entry 'rec_c'", "no 'features'"]),
    "lengths disagree": (replace("rec_c", "intervals", grid(599)), ["F.csd", "entry 'rec_c'", "600 features but 599 intervals"]),
    "NaN time": (replace("rec_a", "intervals", interval(7, [np.nan, 1])), ["F.csd", "entry 'rec_a'", "row 7", "nan"]),
    "infinite time": (replace("rec_a", "intervals", interval(7, [0, np.inf])), ["F.csd", "entry 'rec_a'", "row 7", "inf"]),
    "end before start": (replace("rec_d", "intervals", interval(5, [2, 1])), ["F.csd", "entry 'rec_d'", "row 5", "2 s to 1 s"]),
    "label ends before start": (in_labels("rec_a", "intervals", [[0, 1], [3, 2], [3, 4.0]]), ["L.csd", "entry 'rec_a'", "row 1"]),
    "1-D features": (replace("rec_a", "features", np.zeros(600)), ["F.csd", "entry 'rec_a'", "1-D"]),
    "1-D labels": (in_labels("rec_a", "features", np.zeros(3)), ["L.csd", "entry 'rec_a'", "1-D"]),
    "3-D features": (replace("rec_a", "features", np.zeros((600, 3, 1))), ["F.csd", "entry 'rec_a'", "3-D"]),
    "text features": (replace("rec_a", "features", np.full((600, 3), b"x")), ["F.csd", "entry 'rec_a'", "numbers"]),
    "intervals of another shape": (replace("rec_a", "intervals", np.zeros((600, 3))), ["F.csd", "entry 'rec_a'", "(600, 3)"]),
    "intensity is NaN": (in_labels("rec_b", "features", [[0, 1], [np.nan, 0], [0, 0]]), ["L.csd", "entry 'rec_b'", "row 1"]),
    "label widths disagree": (widen_one_label, ["L.csd", "entry 'rec_b'", "4 label columns"]),
    "no id in common": (lambda f: csd.write(f.labels, "L", [("other", *segments(0))]), ["F.csd", "L.csd", "no recording id in common"]),
    "no entries": (lambda f: csd.write(f.features, "F", []), ["F.csd", "L.csd", "no recording id in common"]),
    "unnamed label columns": (lambda f: f.write_labels(names=None), ["L.csd", "2 label columns", "--label-names"]),
    "only sentiment": (
        lambda f: csd.write(f.labels, "L", [(r, np.ones((3, 1)), s) for r, (_, s) in f.label_entries.items()], {"dimension names": ["sentiment"]}),
        ["L.csd", "no emotion"],
    ),
    "folds are no JSON": (lambda f: f.folds.write_text("{"), ["folds.json", "JSON"]),
    "folds are binary": (lambda f: f.folds.write_bytes(b"\xff\xfe\x00"), ["folds.json", "JSON"]),
    "a fold is missing": (set_folds({"train": [], "test": []}), ["folds.json", "train, valid and test"]),
    "a fold is no list": (set_folds({**FOLDS, "valid": "rec_c"}), ["folds.json", "'valid'", "list"]),
    "ids are no text": (set_folds({**FOLDS, "valid": [3]}), ["folds.json", "'valid'", "list"]),
    "an id in two folds": (set_folds({**FOLDS, "test": ["rec_a"]}), ["folds.json", "'rec_a'", "train and test"]),
    "a fold without segments": (set_folds({**FOLDS, "test": ["rec_x"]}), ["L.csd", "fold 'test'"]),
    "output exists": (exists, ["prepared", "exists", "--overwrite"]),
}  # fmt: skip


def refusal(arguments, capsys, monkeypatch) -> str:
    """Runs the command line, which must exit with 2; returns its sentence."""
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        prepare.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith(".\n") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("damage", BAD)
def test_bad_input(damage, files, tmp_path, capsys, monkeypatch):
    do_damage, mentions = BAD[damage]
    do_damage(files)
    files.out.parent.mkdir(exist_ok=True)
    before = contents(tmp_path)
    error = refusal(files.arguments, capsys, monkeypatch)
    for mention in mentions:
        assert mention in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--label-names", "a,b,c"], ["L.csd", "2 different names"]),
        (["--label-names", "a,a"], ["L.csd", "2 different names"]),
        (["--words", "W.csd"], ["W.csd", "does not exist"]),
        (["--out", "/dev/null/prepared"], ["/dev/null/prepared", "cannot be created"]),
    ],
)
def test_bad_arguments(arguments, mentions, files, capsys, monkeypatch):
    error = refusal([*files.arguments, *arguments], capsys, monkeypatch)
    assert all(mention in error for mention in mentions), error


def test_words_of_other_recordings(files, capsys, monkeypatch):
    other_words(files)
    error = refusal([*files.arguments, "--words", files.words], capsys, monkeypatch)
    assert "F.csd" in error and "W.csd" in error and "no recording id in common" in error


def test_overwrite_spares_what_is_no_corpus(files, capsys, monkeypatch):
    exists(files)
    assert "is no prepared corpus" in refusal([*files.arguments, "--overwrite"], capsys, monkeypatch)
    assert (files.out / "thesis.txt").read_text() == "precious"


def test_a_failed_overwrite_leaves_the_old_corpus(files, capsys, monkeypatch):
    build(files)
    before = contents(files.out.parent)
    truncate(files)
    refusal([*files.arguments, "--overwrite"], capsys, monkeypatch)
    assert contents(files.out.parent) == before


def test_a_full_disk(files, capsys, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    full_disk(monkeypatch)
    error = refusal(files.arguments, capsys, monkeypatch)
    assert str(files.out) in error and os.strerror(errno.ENOSPC) in error
    assert list(files.out.parent.iterdir()) == []


@pytest.mark.parametrize("blow", [KeyboardInterrupt, MemoryError])
def test_whatever_stops_it_leaves_nothing(blow, files, monkeypatch):
    def stop(*_):
        raise blow

    monkeypatch.setattr(corpus.align, "overlapping", stop)
    with pytest.raises(blow):
        build(files)
    assert list(files.out.parent.iterdir()) == []


# The command line itself.


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "jax_emossl.prepare", *map(str, arguments)]


def test_command_line(files):
    more = files.features.with_name("faces.csd")
    csd.write(more, "faces", [("rec_a", np.ones((150, 2)), grid(150, 0.04))])
    speakers = write_speakers(files, SPEAKERS)
    arguments = [*files.arguments, "--features", more, "--speakers", speakers, "--unlabelled", "--name", "toy"]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=True)
    assert "train_unlabelled" in done.stdout and f"Prepared: {files.out}" in done.stdout
    assert "recordings without faces, which count as the mean there: 3 (rec_b, rec_c, rec_d)" in done.stdout
    loaded = prepared.load(files.out)
    assert (loaded.name, loaded.sources, loaded.speakers) == ("toy", {"acoustic": 3, "faces": 2}, SPEAKERS)
    again = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr == f"error: {files.out} exists: give --overwrite to replace it, or another --out.\n"
    subprocess.run(command(*arguments, "--overwrite"), capture_output=True, check=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_nothing(how, files):
    long = {r: recording(i, 200_000) for i, r in enumerate(files.entries)}
    files.write_features(long)
    files.write_labels({r: (np.ones((50_000, 2)), grid(50_000, 0.01)) for r in files.entries})
    obey = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    running = subprocess.Popen(command(*files.arguments), stderr=subprocess.PIPE, text=True, preexec_fn=obey)
    while running.poll() is None and not list(files.out.parent.glob(".*.partial/*/*")):
        time.sleep(0.01)
    running.send_signal(how)
    assert running.wait(20) == 130
    assert "Interrupted: nothing was written." in running.stderr.read()
    assert list(files.out.parent.iterdir()) == []


def test_help_says_what_is_written():
    text = subprocess.run(command("--help"), capture_output=True, text=True, check=True).stdout
    for word in ("frames.npy", "corpus.json", "--folds cmu_mosei", "--unlabelled", "--tfds"):
        assert word in text


# The TFDS form.


@pytest.fixture
def tensorflow_datasets():
    pytest.importorskip("importlib_resources", reason="importlib_resources, which TensorFlow Datasets needs, is not installed")
    return pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")


def test_tfds_equals_the_arrays(tensorflow_datasets, files):
    loaded = build(files, unlabelled=True, as_tfds=True)
    builder = tensorflow_datasets.builder_from_directory(files.out / "tfds")
    assert set(builder.info.splits) == set(loaded.folds)
    for name, fold in loaded.folds.items():
        position = {(r, i): s for s, (r, i) in enumerate(zip(fold.recordings, fold.indices, strict=True))}
        for example in tensorflow_datasets.as_numpy(builder.as_dataset(split=name)):
            s = position.pop((example["recording"].decode(), example["index"]))
            np.testing.assert_array_equal(example["frames"], fold.frames[fold.offsets[s] : fold.offsets[s + 1]])
            np.testing.assert_array_equal(example["labels"], fold.labels[s])
            assert [example["start"], example["end"]] == fold.intervals[s].tolist()
        assert not position


def test_tfds_without_its_package_is_refused_before_any_work(files, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow_datasets" else found(name))
    assert "tensorflow_datasets, which is not installed" in refusal([*files.arguments, "--tfds"], capsys, monkeypatch)
    assert not files.out.parent.exists()


# A real corpus.


def test_nemo(tmp_path):
    if "EMOSSL_DATA" not in os.environ:
        pytest.skip("EMOSSL_DATA is not set: nEMO is not at hand")
    from jax_emossl.data.corpora import nemo

    paths = nemo.files()
    corpus.build(paths.features, paths.labels, paths.folds, tmp_path / "nemo")
    loaded = prepared.load(tmp_path / "nemo")
    assert sum(len(fold) for fold in loaded.folds.values()) == 4481
    assert len(loaded.statistics) == 9
    assert (len(loaded.features), loaded.hop) == (25, 0.01)
    assert loaded.summary["account"] == []
    shutil.rmtree(tmp_path / "nemo")


def test_the_hop_is_that_of_most_recordings(files):
    frames, _ = files.entries["rec_a"]  # the first
    files.write_features({"rec_a": (frames, grid(len(frames), 0.02))})
    loaded = build(files)
    assert loaded.hop == 0.01
    assert account(loaded)["recordings whose frames are not 0.01 s apart, read as if they were"] == (1, ["rec_a (0.02 s)"])


def test_what_a_fold_names_in_vain_is_counted_without_labels_too(files):
    files.write_folds({**FOLDS, "train": [*FOLDS["train"], "gone"]})
    corpus.build(files.features, "", files.folds, files.out)
    assert account(prepared.load(files.out))["fold recordings dropped: no features"] == (1, ["gone"])


def test_what_is_taken_for_granted_or_left_out_is_counted(files):
    files.write_labels({r: (np.ones((3, 7)), spans) for r, (_, spans) in files.label_entries.items()}, names=None)
    frames, _ = files.entries["rec_b"]
    files.write_features({"rec_b": (frames, grid(len(frames), 0.02))})
    account = {row["reason"]: row for row in build(files, unlabelled=True).summary["account"]}
    assert account["label columns without names, taken for CMU-MOSEI's"]["count"] == 1
    assert account["recordings whose frames are not 0.01 s apart, read as if they were"]["examples"] == ["rec_b (0.02 s)"]
    assert account["stretches without labels left out: shorter than 1 s"]["examples"][:2] == ["rec_a", "rec_a"]
