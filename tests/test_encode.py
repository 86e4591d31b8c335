"""Recordings and a table of labels become a corpus; whatever is wrong with them is one sentence, and nothing is half-written."""

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from jax_emossl import encode
from jax_emossl.data import align, arrays, audio, corpus, csd, datasets, labels, prepared
from jax_emossl.data.audio import Extractor
from jax_emossl.errors import UserError

RATE = 16_000
SPEAKERS = ("ann", "bea", "cem", "dan", "eva")


def tone(seconds=0.5, pitch=150.0, rate=RATE, seed=0):
    """A buzz with some noise, which openSMILE hears as a voice."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 8))
    return (0.1 * buzz + 0.01 * np.random.default_rng(seed).normal(size=len(t))).astype(np.float32)


@pytest.fixture
def recordings(tmp_path):
    """A folder of two files for each of five speakers, and their table."""
    folder = tmp_path / "wav"
    folder.mkdir()
    rows = []
    for i, who in enumerate(SPEAKERS):
        for take in (1, 2):
            soundfile.write(folder / f"{who}_{take}.wav", tone(0.4 + 0.1 * take, 100 + 30 * i, seed=take), RATE)
            rows.append({"file": f"{who}_{take}.wav", "speaker": who, "emotion": ("happy", "neutral")[take - 1]})
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return folder, table


def run(*arguments):
    encode.run([str(argument) for argument in arguments])


def refuses(words, *arguments):
    with pytest.raises(UserError, match=words):
        run(*arguments)


def test_a_corpus_holds_what_opensmile_says_of_each_file(recordings, tmp_path):
    folder, table = recordings
    out = tmp_path / "corpus"
    run("--audio", folder, "--labels", table, "--out", out, "--jobs", 1)
    extractor = Extractor.installed()
    with csd.Sequence(out / "features.csd") as features, csd.Sequence(out / "labels.csd") as said:
        assert features.ids == said.ids == list(SPEAKERS)
        assert features.metadata["dimension names"] == extractor.names and len(extractor.names) == 25
        assert features.metadata["extractor"] == {"name": "opensmile", "feature_set": "eGeMAPSv02", "version": extractor.version}
        frames, intervals = features.read("bea")
        intensities, spans = said.read("bea")
    first, second = (extractor(folder / f"bea_{take}.wav") for take in (1, 2))
    np.testing.assert_array_equal(frames, np.concatenate([first, second]))
    assert intensities.tolist() == [[3.0], [0.0]]  # happy, neutral
    inside = align.overlapping(intervals, spans)
    np.testing.assert_array_equal(frames[inside[0]], first)
    np.testing.assert_array_equal(frames[inside[1]], second)
    np.testing.assert_allclose(spans[1, 0], 0.01 * len(first) + 1.5)  # a second and a half of nothing between
    folds = json.loads((out / "folds.json").read_text())
    assert json.loads((out / "speakers.json").read_text()) == {who: who for who in SPEAKERS}
    assert sorted(sum(folds.values(), [])) == list(SPEAKERS) and [len(folds[f]) for f in ("train", "valid", "test")] == [3, 1, 1]
    with open(out / "segments.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows if row["recording"] == "bea"] == ["bea_1.wav", "bea_2.wav"]
    assert not list(tmp_path.glob(".corpus*"))


def test_the_cmu_sdk_reads_the_corpus(recordings, tmp_path, sdk):
    out = tmp_path / "corpus"
    run("--audio", recordings[0], "--labels", recordings[1], "--out", out, "--jobs", 1)
    for file, width in (("features.csd", 25), ("labels.csd", 1)):
        data = sdk.computational_sequence(str(out / file)).data
        with csd.Sequence(out / file) as ours:
            assert sorted(data) == ours.ids
            np.testing.assert_array_equal(data["cem"]["features"], ours.read("cem")[0])
        assert data["cem"]["features"].shape[1] == width


def test_the_folder_is_a_corpus_for_every_config(recordings, tmp_path):
    from configs import scratch
    from jax_emossl.data import corpora

    out = tmp_path / "mine"
    run("--audio", recordings[0], "--labels", recordings[1], "--out", out, "--jobs", 1, "--rotations", 3)
    config = scratch.get_config(str(out)).data
    corpus = corpora.load(config)
    assert (corpus.name, corpus.emotions, corpus.extractor["feature_set"]) == ("mine", ("happy",), "eGeMAPSv02")
    assert corpus.hop == 0.01 and len(corpus.fold("train")) == 4
    config.folds = "rotations"
    assert [name for name, _ in corpora.rotations(config)] == ["folds_rotation1", "folds_rotation2", "folds_rotation3"]
    tested = [r for _, file in corpora.rotations(config) for r in json.loads(open(file).read())["test"]]
    assert sorted(tested) == list(SPEAKERS)  # each once


def test_several_threads_and_one_give_the_same_corpus(recordings, tmp_path):
    for jobs in (1, 4):
        run("--audio", recordings[0], "--labels", recordings[1], "--out", tmp_path / f"by{jobs}", "--jobs", jobs)
    with csd.Sequence(tmp_path / "by1/features.csd") as one, csd.Sequence(tmp_path / "by4/features.csd") as two:
        for entry in SPEAKERS:
            np.testing.assert_array_equal(one.read(entry)[0], two.read(entry)[0])


def test_what_is_encoded_is_not_encoded_again(recordings, tmp_path, monkeypatch):
    folder, table = recordings
    (folder / "eva_2.wav").write_text("no sound at all")
    arguments = ("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    refuses("1 of 10 files cannot be encoded", *arguments)
    assert not (tmp_path / "corpus").exists()
    asked = []
    own = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, path: asked.append(path.name) or own(self, path))
    run(*arguments, "--skip-bad")
    assert asked == ["eva_2.wav"]
    with csd.Sequence(tmp_path / "corpus/labels.csd") as said:
        assert said.shape("eva") == (1, 1)


@pytest.mark.parametrize("rotations", [1, 2, 3, 5])
def test_every_division_has_all_folds(rotations, recordings, tmp_path):
    out = tmp_path / "corpus"
    run("--audio", recordings[0], "--labels", recordings[1], "--out", out, "--jobs", 1, "--rotations", rotations)
    for path in out.glob("folds*.json"):
        assert all(json.loads(path.read_text()).values())


def test_a_fold_that_loses_all_its_files_is_refused(recordings, tmp_path):
    folder, table = recordings
    who = {"train": ("ann", "bea"), "valid": ("cem",), "test": ("dan", "eva")}
    fold = {name: fold for fold, names in who.items() for name in names}
    frame = pd.read_csv(table)
    frame["fold"] = frame.speaker.map(fold)
    frame.to_csv(table, index=False)
    for take in (1, 2):
        (folder / f"cem_{take}.wav").write_text("no sound at all")
    arguments = ("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1, "--skip-bad")
    refuses("No file of the fold valid can be encoded", *arguments)
    assert not (tmp_path / "corpus").exists()


def test_no_stretch_without_labels_spans_two_files(tmp_path):
    (tmp_path / "arrays").mkdir()
    for i in range(8):
        np.save(tmp_path / "arrays" / f"{i}.npy", np.full((200, 3), i) + np.random.default_rng(i).normal(size=(200, 3)) / 100)
    rows = "\n".join(f"{i}.npy,{'abcd'[i // 2]}" for i in range(8))
    (tmp_path / "who.csv").write_text(f"file,speaker\n{rows}\n")
    out = tmp_path / "corpus"
    run("--arrays", tmp_path / "arrays", "--hop", 0.01, "--labels", tmp_path / "who.csv", "--out", out)
    corpus.build(out / "features.csd", "", out / "folds.json", tmp_path / "prepared")
    folds = prepared.load(tmp_path / "prepared").folds
    stretches = [fold.frames[a:b].round() for fold in folds.values() for a, b in zip(fold.offsets, fold.offsets[1:], strict=False)]
    assert len(stretches) == 8 and all(len(np.unique(own)) == 1 for own in stretches)


def test_arrays_of_the_folder_one_is_in_have_a_name(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    for i in range(3):
        np.save(tmp_path / "own" / f"{i}.npy", np.ones((200, 3)))
    monkeypatch.chdir(tmp_path / "own")
    run("--arrays", ".", "--hop", 0.01, "--out", tmp_path / "corpus")
    with csd.Sequence(tmp_path / "corpus/features.csd") as features:
        assert features.root == "own"


def test_recordings_without_labels_can_be_pretrained_on(recordings, tmp_path):
    out = tmp_path / "bare"
    run("--audio", recordings[0], "--out", out, "--jobs", 1)
    assert not (out / "labels.csd").exists()
    folds = json.loads((out / "folds.json").read_text())
    assert len(folds["train"]) == 8 and len(folds["valid"]) == 2 and folds["test"] == []


@pytest.mark.parametrize("form", ["folder", "FOLDER", "linked", "npz", "parquet", "index", "nullable"])
def test_arrays_become_the_same_corpus_whatever_they_lie_in(form, tmp_path):
    rng = np.random.default_rng(0)
    own = {name: rng.normal(size=(20 + i, 3)).astype(np.float32) for i, name in enumerate(("a", "b", "c"))}
    if form in ("folder", "FOLDER", "linked"):
        source, suffix = tmp_path / "arrays", ".NPY" if form == "FOLDER" else ".npy"
        source.mkdir()
        for name, frames in own.items():
            with open(source / f"{name}{suffix}", "wb") as file:
                np.save(file, frames)
        if form == "linked":
            (source / "again").symlink_to(source)  # round and round
            (tmp_path / "links").mkdir()
            (tmp_path / "links" / "far").symlink_to(source)
            (tmp_path / "links" / "further").symlink_to(source)
            own, source = {f"far/{name}": frames for name, frames in own.items()}, tmp_path / "links"
    elif form == "npz":
        source, suffix = tmp_path / "arrays.npz", ""
        np.savez(source, **own)
    else:
        source, suffix = tmp_path / "arrays.parquet", ""
        tables = [pd.DataFrame(frames, columns=["x", "y", "z"]).assign(file=name) for name, frames in own.items()]
        whole = pd.concat(tables, ignore_index=True)
        if form == "nullable":
            own["b"][:, 2] = own["b"][:, 2] > 0
            own["b"][5, 1] = np.nan
            whole = whole.assign(y=whole.y.astype("Float32"), z=whole.z > 0)
            whole.loc[len(own["a"]) + 5, "y"] = pd.NA
        (whole.set_index("file") if form == "index" else whole).to_parquet(source)
    table = tmp_path / "labels.csv"
    pd.DataFrame([{"file": name + suffix, "speaker": name, "happy": 1.5, "sad": 0} for name in own]).to_csv(table, index=False)
    run("--arrays", source, "--hop", 0.02, "--labels", table, "--out", tmp_path / "corpus")
    name = list(own)[1]
    with csd.Sequence(tmp_path / "corpus/features.csd") as features:
        frames, intervals = features.read(name.replace("/", "_"))
    np.testing.assert_array_equal(frames, own[name])
    np.testing.assert_allclose(intervals[:, 0], 0.02 * np.arange(21))


def test_segments_within_a_file_and_folds_of_the_table(recordings, tmp_path):
    folder, _ = recordings
    rows = [{"file": f"{who}_{t}.wav", "speaker": who, "start": a, "end": a + 0.2, "fold": fold, "happy": 1, "sad": 0}
            for who, fold in zip(SPEAKERS, ("train", "train", "valid", "test", "test"), strict=True) for t in (1, 2) for a in (0.0, 0.2)]  # fmt: skip
    table = tmp_path / "own.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    run("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    assert json.loads((tmp_path / "corpus/folds.json").read_text()) == {
        "train": ["ann", "bea"], "valid": ["cem"], "test": ["dan", "eva"],
    }  # fmt: skip
    with csd.Sequence(tmp_path / "corpus/labels.csd") as said:
        spans = said.intervals("dan")
    assert len(spans) == 4
    np.testing.assert_allclose(spans[1] - spans[0], 0.2)


def test_the_corpus_knows_the_speakers_of_its_table_alone(recordings, tmp_path):
    """Of recordings without a speaker it does not say that they are speakers."""
    from configs import scratch
    from jax_emossl.data import corpora

    folder, table = recordings
    rows = pd.read_csv(table)
    rows.assign(recording=rows["file"].str[:-4]).to_csv(table, index=False)
    run("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    config = scratch.get_config(str(tmp_path / "corpus"))
    loaded = corpora.load(config.data)
    assert loaded.speakers == {f"{who}_{take}": who for who in SPEAKERS for take in (1, 2)} and loaded.unit == "speaker"
    rows.drop(columns="speaker").assign(recording=rows["speaker"]).to_csv(table, index=False)
    run("--audio", folder, "--labels", table, "--out", tmp_path / "other", "--jobs", 1)
    assert not (tmp_path / "other/speakers.json").exists()
    assert corpora.load(scratch.get_config(str(tmp_path / "other")).data).unit == "recording"


def damaged(name, keep):
    """What remains of a second of sound in a format that a file's name says."""

    def make(file):
        soundfile.write(file.with_name(name), tone(1.0), RATE)
        whole = file.with_name(name).read_bytes()
        file.with_name(name).write_bytes(whole[: int(len(whole) * keep)])
        return file.with_name(name)

    return make


def header(place, number):
    """A sound WAV file with a number of its header replaced."""

    def make(file):
        soundfile.write(file, tone(), RATE)
        content = bytearray(file.read_bytes())
        content[place : place + 4] = number.to_bytes(4, "little")
        file.write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: f.write_bytes(b""), "is no audio file that can be read"),
        (lambda f: f.write_text("not sound"), "is no audio file that can be read"),
        (lambda f: soundfile.write(f, np.zeros(0), RATE), "holds no sound"),
        (lambda f: soundfile.write(f, np.zeros(RATE), RATE), r"is silent \(every sample is 0 in 16 bits\)"),
        (lambda f: soundfile.write(f, 1e-5 * tone(), RATE, subtype="FLOAT"), r"is silent \(every sample is 0 in 16 bits\)"),
        (lambda f: soundfile.write(f, 20 * tone(), RATE, subtype="FLOAT"), "has samples that reach .* where 1 is full scale"),
        (lambda f: soundfile.write(f, np.where(np.arange(RATE) % 200, 0, 32767.0), RATE, subtype="FLOAT"), "samples that reach 32767 where"),
        (lambda f: soundfile.write(f, np.stack([tone(), -tone()], 1), RATE, subtype="FLOAT"), r"is silent \(its channels cancel out\)"),
        (lambda f: soundfile.write(f, np.full(RATE, np.nan), RATE, subtype="FLOAT"), "samples that are not numbers"),
        (lambda f: soundfile.write(f, tone(0.01), RATE), "too short for a frame"),
        (damaged("b.wav", 0.3), "is truncated"),
        (damaged("b.mp3", 0.5), "is truncated"),
        (damaged("b.flac", 0.5), "is no audio file that can be read"),
        (damaged("b.ogg", 0.5), "holds no sound"),
        (header(40, 0), "has no length in its header, as a recorder leaves it"),
        (header(24, 0), "is no audio file that can be read"),
        (lambda f: soundfile.write(f, tone(), 1), "has 1 samples per second where speech needs 2000"),
    ],
    ids=["empty", "text", "no samples", "silent", "quiet", "loud", "16 bits", "opposite", "NaN", "10 ms", "WAV", "MP3", "FLAC", "OGG", "no length", "0 Hz", "1 Hz"],
)  # fmt: skip
def test_a_file_that_holds_no_speech_is_one_sentence(make, words, tmp_path):
    file = tmp_path / "a.wav"
    made = make(file)
    file = made if isinstance(made, Path) else file
    with pytest.raises(UserError, match=words) as caught:
        Extractor.installed()(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("make", [header(40, 2**32 - 1), header(28, 1)], ids=["of a pipe", "wrong bytes per second"])
def test_a_header_that_is_only_sloppy_is_none_of_our_business(make, tmp_path):
    make(tmp_path / "a.wav")
    signal, rate = audio.read(tmp_path / "a.wav")
    assert (len(signal), rate) == (len(tone()), RATE)


def test_many_channels_at_a_high_rate_are_mixed(tmp_path):
    file = tmp_path / "a.flac"
    soundfile.write(file, np.stack([tone(rate=192_000, seed=i) for i in range(8)], 1), 192_000)
    signal, rate = audio.read(file)
    assert signal.shape == (96_000,) and rate == 192_000
    assert np.isfinite(Extractor.installed()(file)).all()


def test_a_signal_beyond_full_scale_is_clipped_not_wrapped(tmp_path):
    loud = tone() / np.quantile(np.abs(tone()), 0.995)
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "clipped.wav", np.clip(loud, -1, 1 - 2**-15), RATE, subtype="FLOAT")
    made = [Extractor.installed()(tmp_path / name) for name in ("loud.wav", "clipped.wav")]
    np.testing.assert_array_equal(*made)


TABLE = {"file": ["a", "b"], "speaker": ["x", "y"], "happy": [0, 3]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"happy": [0, 4]}, "row 2, column 'happy', holds 4: intensities lie in"),
        ({"happy": ["0", "much"]}, "row 2, column 'happy', holds 'much' where a number is needed"),
        ({"arousal": [0, 1]}, "column 'arousal', a dimension of affect"),
        ({"start": [0, 2], "end": [1, 1]}, "row 2, runs from 2 s to 1 s"),
        ({"start": [0, -1], "end": [1, 1]}, "row 2, runs from -1 s"),
        ({"fold": ["train", "dev"]}, "row 2, has the fold 'dev'"),
        ({"file": ["a", "a"]}, "row 2, gives a another speaker"),
        ({"speaker": ["x", "x"], "fold": ["train", "test"]}, "'x' in two folds"),
        ({"emotion": ["happy", "sad"]}, "'emotion' and others"),
        ({"happy": [0, "nan"]}, "row 2, column 'happy', holds 'nan' where a number is needed"),
        ({"start": [0, -1]}, "row 2, runs from -1 s to its end: correct"),
        ({"happy": [0, 0]}, "labels.csv has no intensity but 0"),
        ({"speaker": ["x", "x"], "file": ["a", "a"]}, "rows 1 and 2, are of the same stretch of a"),
        ({"speaker": ["x", "x"], "file": ["a", "a"], "start": [1, 1], "end": [2, 2]}, "rows 1 and 2, are of the same stretch of a"),
        ({"bore\N{NO-BREAK SPACE}dom": [0, 1]}, r"the column 'bore\\xa0dom', with a character that does not print"),
        ({"": [0, 1]}, "has a column without a name"),
        ({"happy ": [0, 1]}, "has two columns 'happy'"),
        ({"Speaker": ["x", "y"]}, "has the column 'Speaker': write it 'speaker'"),
        ({"START": [0, 1]}, "has the column 'START': write it 'start'"),
        ({"speaker": ["a/x", "a_x"]}, "has the names 'a/x' and 'a_x', both of which would become 'a_x'"),
        ({"speaker": ["x", ".."]}, "has the name '..', which stands for a folder"),
    ],
)
def test_a_table_that_contradicts_itself_is_one_sentence(columns, words):
    with pytest.raises(UserError, match=words):
        labels.Table.of(pd.DataFrame(TABLE | columns), "labels.csv")


def test_names_with_dots_and_slashes_stay_apart():
    table = labels.Table.of(
        pd.DataFrame({"file": ["x/a.wav", "x/a.flac"], "speaker": ["a.smith", "a/jones"], "happy": [1, 2]}), "labels.csv"
    )
    assert [file.recording for file in table.files] == ["a.smith", "a_jones"]
    assert [file.recording for file in labels.Table.unlabelled(["x/a.wav", "x/a.flac"], "wav").files] == ["x_a.wav", "x_a.flac"]
    with pytest.raises(UserError, match="wav has the names 'x/a.wav' and 'x_a.wav'"):
        labels.Table.unlabelled(["x/a.wav", "x_a.wav"], "wav")


@pytest.mark.parametrize("odd", ["\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}", "\0"])
def test_speakers_have_names_that_print(odd):
    files = labels.Table.of(pd.DataFrame(TABLE | {"speaker": [f"x{odd}1", "y"]}), "labels.csv").files
    assert [(file.speaker, file.recording) for file in files] == [("x_1", "x_1"), ("y", "y")]


def test_files_whose_names_are_no_text_make_a_corpus_that_can_be_read(tmp_path):
    (tmp_path / "arrays").mkdir()
    for name in (b"caf\xe9", b"nar\xe2\x80\xafrow", b"a"):
        np.save(os.fsdecode(os.fsencode(tmp_path / "arrays") + b"/" + name + b".npy"), np.ones((200, 3)))
    run("--arrays", tmp_path / "arrays", "--hop", 0.02, "--out", tmp_path / "corpus")
    with csd.Sequence(tmp_path / "corpus/features.csd") as features:
        assert features.ids == ["a.npy", "caf_.npy", "nar_row.npy"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,speaker,happy,happy\na,x,0,1\n", "has two columns 'happy'"),
        ("file,speaker ,speaker,happy\na,x,x,1\n", "has two columns 'speaker'"),
        (",file,happy\n0,a,1\n", "has a column without a name"),
        ("file,happy\na,1,2\n", r"is no CSV file that can be read \(.* Expected 2 fields in line 2, saw 3"),
        ("file,speaker,happy\na,x\n", "row 1, column 'happy', holds '' where a number is needed"),
        ("file,emotion\na,happy\nb,bore\N{NO-BREAK SPACE}dom\n", r"row 2, names the emotion 'bore\\xa0dom', with a character"),
        ("", "is no CSV file that can be read"),
        ("file,happy\n", "has no rows"),
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(content, words, tmp_path):
    with pytest.raises(UserError, match=f"labels.csv.* {words}"):
        labels.Table.read(_with(tmp_path / "labels.csv", content))


@pytest.mark.parametrize("suffix", ["gz", "zip", "bz2", "xz"])
def test_a_table_that_was_compressed_is_one_sentence(suffix, tmp_path):
    pd.DataFrame(TABLE).to_csv(tmp_path / f"labels.csv.{suffix}", index=False)
    with pytest.raises(UserError, match="is no CSV file that can be read"):
        labels.Table.read(tmp_path / f"labels.csv.{suffix}")


def test_a_table_of_neutral_alone_is_one_sentence():
    with pytest.raises(UserError, match="labels.csv names no emotion but neutral"):
        labels.Table.of(pd.DataFrame({"file": ["a", "b"], "emotion": ["Neutral", "calm"]}), "labels.csv")


def test_names_of_emotions_are_the_usual_ones():
    table = labels.Table.of(pd.DataFrame({"file": list("abcd"), "emotion": ["Happiness", "neutral", "angry", "joy"]}), "labels.csv")
    assert table.emotions == ("anger", "happy") and not table.knows_speakers
    assert [file.segments[0].intensities for file in table.files] == [(0, 3), (0, 0), (3, 0), (0, 3)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: np.save(p, np.zeros(5)), r"the shape \(5,\) where \(frames, dimensions\)"),
        (lambda p: np.save(p, np.array([[{}]]), allow_pickle=True), "holds no plain numbers that can be read"),
        (lambda p: np.save(p, np.array([["x"]])), "where numbers are needed"),
        (lambda p: np.save(p, np.zeros((0, 3))), "the shape"),
        (lambda p: p.write_bytes(pickle.dumps([1, 2])), "Python objects, which are never loaded"),
        (lambda p: p.write_bytes(b"junk"), "holds no plain numbers that can be read"),
        (lambda p: np.save(p, np.full((9, 3), np.nan)), "holds no number that is finite"),
        (lambda p: None, "a.npy does not exist"),
    ],
    ids=["1-D", "object", "text", "empty", "pickle", "junk", "NaN", "none"],
)
def test_an_array_that_is_none_is_one_sentence(make, words, tmp_path):
    make(tmp_path / "a.npy")
    with pytest.raises(UserError, match=words):
        arrays.read(tmp_path / "a.npy")


def test_an_array_among_several_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", good=np.zeros((9, 3)), bad=np.array([[{}]], object))
    with pytest.raises(UserError, match=r"a.npz, array 'bad', holds no plain numbers"):
        arrays.readers(tmp_path / "a.npz")["bad"]()


def test_a_column_that_holds_no_numbers_is_named(tmp_path):
    pd.DataFrame({"file": ["a", "b"], "x": [0.0, 1.0], "speaker": ["c", "d"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet, column 'speaker', holds str where numbers are needed"):
        arrays.readers(tmp_path / "a.parquet")


def test_what_the_arguments_contradict_is_one_sentence(recordings, tmp_path):
    folder, table = recordings
    out = tmp_path / "corpus"
    known = table.read_text()
    refuses(
        "names zoe.wav, which .* does not hold", "--audio", folder, "--labels", _with(table, known + "zoe.wav,zoe,happy\n"), "--out", out
    )
    refuses(
        "holds eva_2.wav, which .* does not name",
        "--audio",
        folder,
        "--labels",
        _with(table, known.replace("eva_2.wav,eva,neutral\n", "")),
        "--out",
        out,
    )
    _with(table, known)
    refuses("give --hop", "--arrays", folder, "--out", out)
    refuses("has no .npy file", "--arrays", folder, "--hop", 0.01, "--out", out)
    refuses("is no corpus whose file names are known", "--audio", folder, "--dataset", "klingon", "--out", out)
    refuses("is no folder: get emodb from http", "--audio", tmp_path / "EmoDB", "--dataset", "emodb", "--out", out)
    refuses("fold names no file of the fold valid", "--audio", folder, "--labels", _with(table, "\n".join(
        line + (",fold" if i == 0 else ",train") for i, line in enumerate(known.splitlines()))), "--out", out)  # fmt: skip
    refuses(r"no column 'file' \(it has 'file;speaker'\)", "--audio", folder, "--labels", _with(table, "file;speaker\na;b\n"), "--out", out)
    _with(table, known)
    refuses("There are 5 speakers .* where 6 are needed", "--audio", folder, "--labels", table, "--rotations", 6, "--out", out)
    refuses("--rotations 0 divides nothing", "--audio", folder, "--labels", table, "--rotations", 0, "--out", out)
    three = "\n".join(known.splitlines()[:7])
    few = tmp_path / "few"
    few.mkdir()
    for line in three.splitlines()[1:]:
        (few / line.split(",")[0]).write_bytes((folder / line.split(",")[0]).read_bytes())
    refuses("There are 3 speakers .* where 4 are needed", "--audio", few, "--labels", _with(table, three), "--rotations", 2, "--out", out)
    timed = "file,start,end\n" + "\n".join(f"{line.split(',')[0]},0,0.2" for line in known.splitlines()[1:])
    refuses("has times but no emotions", "--audio", folder, "--labels", _with(table, timed), "--out", out)
    _with(table, known)
    ends = pd.DataFrame(
        [{"file": file.name, "speaker": file.name[:3], "start": 0, "end": 9, "happy": 1} for file in sorted(folder.iterdir())]
    )
    ends.to_csv(table, index=False)
    refuses(
        "labels.csv, row 1, runs from 0 s to 9 s, but ann_1.wav ends at", "--audio", folder, "--labels", table, "--out", out, "--jobs", 1
    )
    ends.drop(columns="end").assign(start=9).to_csv(table, index=False)
    refuses("row 1, runs from 9 s to its end, but ann_1.wav", "--audio", folder, "--labels", table, "--out", out, "--jobs", 1)
    refuses("--rotations 2 would hold recordings out to be tested", "--audio", folder, "--rotations", 2, "--out", out)
    refuses("--seed -1 is negative", "--audio", folder, "--seed", -1, "--out", out)
    refuses("c[+]d/x has a '[+]', by which configs join corpora", "--audio", folder, "--out", tmp_path / "c+d/x")
    assert not out.exists() and not (tmp_path / "c+d").exists()
    out.mkdir()
    refuses("exists: remove it", "--audio", folder, "--out", out)


def test_arrays_of_differing_widths_are_one_sentence(tmp_path):
    source = tmp_path / "arrays"
    source.mkdir()
    for name, width in (("a", 3), ("b", 3), ("c", 4)):
        np.save(source / f"{name}.npy", np.zeros((20, width)))
    refuses("c.npy has 4 dimensions where a.npy has 3", "--arrays", source, "--hop", 0.01, "--out", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_without_opensmile_it_is_said_what_to_install(recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    refuses("needs the package opensmile, .* pip install -r requirements-audio.txt", "--audio", recordings[0], "--out", tmp_path / "corpus")


def _with(path, content):
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "stem", "said"),
    [
        ("nemo", "EB0_happiness_12", ("EB0", "happy", 3)),
        ("nemo", "EB0_neutral_1", ("EB0", "", 3)),
        ("ravdess", "03-01-05-02-01-01-12", ("actor12", "anger", 3)),
        ("ravdess", "03-01-04-01-02-02-07", ("actor07", "sad", 2)),
        ("ravdess", "03-01-02-01-02-02-07", ("actor07", "", 2)),
        ("emodb", "03a01Fa", ("speaker03", "happy", 3)),
        ("emodb", "16b10Lb", ("speaker16", "boredom", 3)),
        ("cremad", "1001_IEO_ANG_LO", ("actor1001", "anger", 1)),
        ("cremad", "1091_WSI_NEU_XX", ("actor1091", "", 3)),
        ("savee", "DC_su03", ("DC", "surprise", 3)),
        ("savee", "KL_a11", ("KL", "anger", 3)),
    ],
)
def test_file_names_of_public_corpora_are_their_labels(name, stem, said):
    assert datasets.module(name).parse(stem) == said
    assert datasets.module(name).parse("holiday") is None


def test_a_public_corpus_by_name(tmp_path):
    folder = tmp_path / "wav"
    folder.mkdir()
    for actor in (1, 2, 3):
        soundfile.write(folder / f"03-01-03-02-01-01-{actor:02d}.wav", tone(seed=actor), RATE)
    run("--dataset", "ravdess", "--audio", folder, "--out", tmp_path / "corpus", "--jobs", 1)
    with csd.Sequence(tmp_path / "corpus/labels.csd") as said:
        assert said.read("actor02")[0].tolist() == [[3, 0, 0, 0, 0, 0]]
    soundfile.write(folder / "holiday.wav", tone(), RATE)
    refuses(
        "holiday.wav has no name of a file of ravdess: .* get the corpus anew from",
        "--dataset",
        "ravdess",
        "--audio",
        folder,
        "--out",
        tmp_path / "x",
    )


def test_the_command_prints_one_sentence_and_a_summary(recordings, tmp_path):
    command = [sys.executable, "-m", "jax_emossl.encode", "--out", str(tmp_path / "corpus"), "--audio"]
    failed = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr
    made = subprocess.run([*command, str(recordings[0])], capture_output=True, text=True, check=True)
    assert "10 files" in made.stdout and "8 train, 2 valid, 0 test; no labels" in made.stdout
    assert "\nFolds were drawn by file, since there is no column speaker." in made.stdout
    assert f"pretrain on it with --config=configs/pretrain.py:{tmp_path / 'corpus'}" in made.stdout
    assert prepared.is_prepared(tmp_path / "corpus") is False


def test_what_has_changed_since_is_encoded_again(recordings, tmp_path):
    folder, table = recordings
    rows = pd.read_csv(table)
    rows.assign(start=0.0, end=9.0).to_csv(table, index=False)
    arguments = ("--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    refuses("runs from 0 s to 9 s", "--audio", folder, *arguments)
    rows.to_csv(table, index=False)
    cleaned = tmp_path / "cleaned"
    cleaned.mkdir()
    for path in folder.glob("*.wav"):
        soundfile.write(cleaned / path.name, tone(0.8, 300), RATE)
    run("--audio", cleaned, *arguments)
    with csd.Sequence(tmp_path / "corpus/features.csd") as features:
        np.testing.assert_array_equal(
            features.read("ann")[0][: len(features.read("ann")[0]) // 2], Extractor.installed()(cleaned / "ann_1.wav")
        )


def test_an_array_that_was_mended_is_read_again(tmp_path):
    (tmp_path / "arrays").mkdir()
    for name, width in (("a", 3), ("b", 3), ("c", 4)):
        np.save(tmp_path / "arrays" / f"{name}.npy", np.ones((20, width), np.float32))
    arguments = ("--arrays", tmp_path / "arrays", "--hop", 0.02, "--out", tmp_path / "corpus")
    refuses("c.npy has 4 dimensions where a.npy has 3", *arguments)
    np.save(tmp_path / "arrays" / "c.npy", np.ones((20, 3), np.float32))
    run(*arguments)
    assert (tmp_path / "corpus" / "features.csd").is_file()


@pytest.mark.parametrize("header", ["file,speaker,happy", "file , speaker ,happy"])
def test_names_that_look_like_numbers_stay_names(header, tmp_path):
    np.savez(tmp_path / "arrays.npz", **{f"00{i}": np.ones((20, 3), np.float32) for i in range(1, 4)})
    (tmp_path / "labels.csv").write_text(f"{header}\n" + "".join(f"00{i},0{i},{i}\n" for i in range(1, 4)))
    run("--arrays", tmp_path / "arrays.npz", "--hop", 0.02, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "corpus")
    assert set(json.loads((tmp_path / "corpus/speakers.json").read_text())) == {"01", "02", "03"}


def test_a_recording_has_one_speaker(recordings, tmp_path):
    folder, table = recordings
    rows = pd.read_csv(table)
    rows.assign(recording=rows["file"].str[-5]).to_csv(table, index=False)  # numbered within each speaker
    arguments = ("--audio", folder, "--labels", table, "--out", tmp_path / "corpus")
    refuses("row 3, gives the recording '1' to bea where a row before gives it to ann", *arguments)


def test_the_files_of_one_speaker_can_be_divided(recordings, tmp_path):
    folder, table = recordings
    rows = pd.read_csv(table)
    rows.assign(speaker="me").to_csv(table, index=False)
    arguments = ("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    refuses("There are 1 speakers .* or leave the columns speaker and recording out", *arguments)
    rows.drop(columns="speaker").to_csv(table, index=False)
    run(*arguments)
    assert len(json.loads((tmp_path / "corpus/folds.json").read_text())["test"]) == 2


def test_emotions_come_in_one_order_whatever_the_rows(recordings):
    rows = pd.DataFrame({"file": ["a", "b", "c"], "emotion": ["sad", "neutral", "anger"]})
    assert labels.Table.of(rows, "t").emotions == labels.Table.of(rows[::-1], "t").emotions == ("anger", "sad")


def test_a_corpus_without_a_test_fold_is_offered_for_pretraining_alone(recordings, tmp_path, capsys):
    folder, table = recordings
    rows = pd.read_csv(table)
    rows.assign(fold=["train"] * 6 + ["valid"] * 4).to_csv(table, index=False)
    run("--audio", folder, "--labels", table, "--out", tmp_path / "corpus", "--jobs", 1)
    assert "; pretrain on it with --config=configs/pretrain.py" in capsys.readouterr().out
