"""By what of its recording a segment is normalised: which others, and that nothing else of it enters."""

import dataclasses
import json
import math

import numpy as np
import pytest
from make_corpus import Files, grid, recording

from jax_emossl import config as fields
from jax_emossl import results
from jax_emossl.data import corpus, normalisation, prepared
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.model import load_model
from jax_emossl.predictor import predict
from jax_emossl.tasks import compare

RECORDINGS = np.array(["b", "a", "a", "b", "a", "c"])
INTERVALS = np.array([[0, 2], [4, 6], [0, 2], [1, 3], [2, 4], [0, 1]], float)  # those of b overlap
LABELS = np.array([[1, 0], [0, 0], [0, 2], [0, 0], [0, 0], [0, 0]], np.float32)


def counted(basis):
    """(S, S): which others count for each segment, as the standards read it."""
    order, first, until = basis[:, 0], basis[:, 1:2], basis[:, 2:]
    return (first <= order) & (order < until) & (order != basis[:, :1])


def test_a_segment_rests_on_what_its_mode_says():
    nobody = np.zeros(6, bool)
    same = RECORDINGS[:, None] == RECORDINGS
    by = {mode: counted(normalisation.basis(mode, RECORDINGS, INTERVALS, nobody)) for mode in normalisation.MODES}
    np.testing.assert_array_equal(by["recording"], same & ~np.eye(6, dtype=bool))
    np.testing.assert_array_equal(by["causal"], same & (INTERVALS[:, 1] <= INTERVALS[:, :1]))
    assert not by["none"].any() and not by["enrolment"].any()
    some = np.array([True, True, False, False, True, False])
    np.testing.assert_array_equal(
        counted(normalisation.basis("enrolment", RECORDINGS, INTERVALS, some)), same & some & ~np.eye(6, dtype=bool)
    )


@pytest.mark.parametrize("by", normalisation.MODES)
def test_a_fold_may_be_empty(by):
    nothing = np.array([], str), np.zeros((0, 2))
    enrolled = normalisation.enrolled(by, *nothing, 3)
    assert normalisation.basis(by, *nothing, enrolled).shape == (0, 3)


def test_enrolment_is_drawn_by_the_recordings_name_and_leaves_something_to_score():
    names, labels = np.repeat(["a", "b", "c"], [20, 3, 1]), np.eye(2)[np.arange(24) % 2] * (np.arange(24) % 3 > 0)[:, None]
    drawn = normalisation.enrolled("enrolment", names, labels, 4)
    assert [drawn[names == name].sum() for name in "abc"] == [4, 2, 0]
    np.testing.assert_array_equal(normalisation.enrolled("enrolment", names[:20], labels[:20], 4), drawn[:20])  # whatever is beside it
    neutral = normalisation.enrolled("neutral", names, labels, 4)
    assert not labels[neutral].any() and [neutral[names == name].sum() for name in "abc"] == [4, 1, 0]
    assert not normalisation.enrolled("causal", names, labels, 4).any()


@pytest.fixture
def by_speaker(tmp_path):
    """A corpus in which ann speaks in both recordings of the training fold, bea and cid in the others."""
    files = Files(tmp_path)
    (tmp_path / "speakers.json").write_text('{"rec_a": "ann", "rec_b": "ann", "rec_c": "bea", "rec_d": "cid"}')
    corpus.build(files.features, files.labels, files.folds, files.out, speakers=tmp_path / "speakers.json")
    return prepared.load(files.out)


def of_fold(loaded, fold, by, prior=0.0, enrolment=2):
    return Segments(loaded, [fold], Frontend(loaded.features, loaded.train_statistics, prior, 5.0, 2, 2, 0.01, by, enrolment))


def test_speakers_that_are_known_count_as_one(by_speaker):
    segments = of_fold(by_speaker, "train", "recording")
    assert segments.recordings.tolist() == ["ann"] * 6 and segments.recording.tolist() == [0] * 6
    assert of_fold(by_speaker, "test", "recording").recording.tolist() == [2] * 3 and segments.num_recordings == 3
    np.testing.assert_array_equal(counted(segments.basis), ~np.eye(6, dtype=bool))  # also by the other recording's
    location = segments._location[segments._scaled_by]
    assert (location == location[0]).all()
    np.testing.assert_allclose(location[0], by_speaker.train_statistics.mean, rtol=1e-5)


def test_enrolment_is_drawn_of_a_speaker_and_lasts_as_long_as_its_parts(by_speaker):
    segments = of_fold(by_speaker, "train", "enrolment", prior=4.0, enrolment=4)
    assert segments.enrolled.sum() == 4  # of at most three of a recording: of both
    frames = np.concatenate([segments._raw(i)[:, 2] for i in np.flatnonzero(segments.enrolled)]).astype(float)
    own = 0.5 * frames.mean() + 0.5 * by_speaker.train_statistics.mean[2]  # four segments of 1 s, although their times overlap
    np.testing.assert_allclose(segments._location[segments._scaled_by][:, 2], own, rtol=1e-4)


def test_what_came_before_is_of_the_same_recording(by_speaker):
    """The times of two recordings of a speaker have no order."""
    before = counted(of_fold(by_speaker, "train", "causal").basis)
    np.testing.assert_array_equal(before, np.kron(np.eye(2), np.tri(3, k=-1)))


@pytest.fixture
def spoilt(tmp_path):
    """Makes the prepared corpus twice: the test recording's frames from `since` to `until` (s) differ; some values are not finite."""

    def make(since, until):
        made = []
        for name, shift in (("one", 0.0), ("other", 9.0)):
            (tmp_path / name).mkdir()
            files = Files(tmp_path / name)
            frames, _ = recording(3)
            frames[10:20, 2], frames[170:175, 0] = np.nan, -np.inf
            frames[round(100 * since) : round(100 * until)] += shift
            files.write_features({"rec_d": (frames, grid(600))})
            corpus.build(files.features, files.labels, files.folds, files.out)
            made.append(prepared.load(files.out))
        return made

    return make


def steps(loaded, by, prior, enrolment=1):
    """The model steps of the test recording's three segments, at 0-1, 1.5-2.5 and 3-4 s."""
    frontend = Frontend(loaded.features, loaded.train_statistics, prior, 5.0, 2, 2, 0.01, by, enrolment)
    segments = Segments(loaded, ["test"], frontend)
    return [segments.steps(i) for i in range(3)], segments


@pytest.mark.parametrize(("by", "prior"), [("recording", math.inf), ("causal", 1.0)])
def test_without_a_recordings_own_statistics_the_rest_of_it_never_enters_a_segment(by, prior, spoilt):
    """The first two segments hold values that are not finite; what differs comes after them."""
    (before, _), (after, _) = (steps(loaded, by, prior) for loaded in spoilt(2.5, 6))
    for i in (0, 1):
        np.testing.assert_array_equal(before[i], after[i])
        assert np.isfinite(before[i]).all()
    assert not np.array_equal(before[2], after[2])


def test_with_a_recordings_own_statistics_the_rest_of_it_enters(spoilt):
    (before, _), (after, _) = (steps(loaded, "recording", 1.0) for loaded in spoilt(2.5, 6))
    assert not np.array_equal(before[0], after[0])


def test_causal_features_are_normalised_by_what_came_before_and_the_segment_itself(spoilt):
    loaded, _ = spoilt(0, 0)
    made, segments = steps(loaded, "causal", 1.0)
    frontend, fold = segments._frontend, loaded.fold("test")
    for i in range(3):
        frames = fold.frames[: fold.offsets[i + 1]]
        voiced = np.column_stack([frames[:, 1] > 0.5, *[np.ones(len(frames), bool)] * 2])
        own = normalisation.Statistics.of(frames, grid(len(frames)), voiced)
        expected = frontend(fold.frames[fold.offsets[i] : fold.offsets[i + 1]], *frontend.location_and_scale(own))
        np.testing.assert_allclose(made[i], expected, rtol=1e-4, atol=1e-5)


def test_windows_that_overlap_weigh_as_much_as_the_time_they_cover():
    windows = np.array([[start, start + 4] for start in range(9)], float)
    basis = normalisation.basis("causal", ["a"] * 9, windows, np.zeros(9, bool))
    values = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)  # one a second

    def of_frames(segments):
        (i,) = segments
        return normalisation.Statistics.of(values[i : i + 4], windows[segments])

    places, made = normalisation.by_segments("causal", basis, windows, of_frames)
    # Windows that ended before the one from 6 to 10 s begin at 0, 1 and 2 s and cover 6 s; itself it has 4.
    assert [made[place].seconds for place in places] == [4, 4, 4, 4, 8, 9, 10, 11, 12]


def test_enrolment_alone_normalises_the_others(spoilt):
    (one, other) = spoilt(0, 6)
    _, segments = steps(one, "enrolment", 0.0)
    (drawn,) = np.flatnonzero(segments.enrolled)
    location = segments._location[segments._scaled_by]
    assert (location == location[0]).all()
    frames = one.fold("test").frames[one.fold("test").offsets[drawn] : one.fold("test").offsets[drawn + 1], 2]
    np.testing.assert_allclose(location[0, 2], np.nanmean(frames.astype(np.float64)), rtol=1e-5)
    rest = segments.take(np.flatnonzero(~segments.enrolled))
    assert rest.with_basis().positions.tolist() == [*rest.positions, drawn]
    np.testing.assert_array_equal(rest.with_basis().take(np.arange(2)).steps(1), rest.steps(1))


@pytest.mark.parametrize("by", normalisation.MODES)
def test_what_is_said_of_a_segment_does_not_depend_on_which_others_are_asked(by, tiny_config):
    """Part of a fold, as where a budget validates itself, rests on the same segments as the whole of it."""
    experiment = build(tiny_config("scratch", {"data.normalise_by": by, "data.enrolment": 2}))
    assert len(experiment.segments("train")) == 36  # its own enrolment may be learned from
    valid = experiment.segments("valid")
    assert len(valid) == 18 - valid.whole.enrolled.sum() and len(valid.with_basis()) == 18
    assert valid.whole.enrolled.any() == (by in ("enrolment", "neutral"))
    params = experiment.params()
    readout = params["head"]["readout"]
    readout["kernel"] = np.random.default_rng(0).normal(size=readout["kernel"].shape).astype(np.float32)
    pooled = len(readout["kernel"])
    overall = {"location": np.zeros(pooled, np.float32), "scale": np.ones(pooled, np.float32)}
    variables = {"params": params, "constants": {"overall": overall}}
    (whole,) = predict(experiment.objective, [variables], [valid], *experiment.sizes)
    (few,) = predict(experiment.objective, [variables], [valid.take(np.array([3, 7]))], *experiment.sizes)
    assert len(whole["scores"]) == len(valid) and len(few["scores"]) == 2
    np.testing.assert_allclose(few["scores"], whole["scores"][[3, 7]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", ["neutral", "causal", "none"])
def test_a_run_of_every_mode_trains_and_says_by_what_it_was_normalised(by, tiny_config, trained, capsys):
    _, rows = trained(tiny_config("scratch", {"data.normalise_by": by, "data.enrolment": 2, "train.steps": 2}))
    assert rows[0]["metrics"]["mae"] is not None
    assert f"normalised {normalisation.words(by, 'test', 1.0)}" in capsys.readouterr().out


def test_every_arm_of_a_comparison_scores_the_same_segments(comparison_config, tmp_path, monkeypatch):
    """Those that do not serve as enrolment; normalised by something else, they are answered differently."""
    monkeypatch.setattr(compare.report, "write", lambda _: "")
    config = comparison_config.copy_and_resolve_references()
    config.compare.update({"arms": ("scratch", "functionals"), "label_counts": (12,), "seeds": 1, "strategies": ("linear", "full")})
    by = (("data.normalise_by", "enrolment"), ("data.enrolment", 2))
    config.compare.variants = (("", by), ("none", (("data.normalise_by", "none"),)))
    kept = {(r["variant"], r["arm"]): r["predictions"] for r in compare.run(config, tmp_path) if r["arm"] != "constant"}
    kept = {key: results.load_arrays(tmp_path / name) for key, name in kept.items()}
    assert {key: len(own["target"]) for key, own in kept.items()} == {
        (variant, arm): number for variant, number in (("", 12), ("none", 18)) for arm in ("scratch", "functionals")
    }
    np.testing.assert_array_equal(kept["", "scratch"]["target"], kept["", "functionals"]["target"])
    assert all(np.isfinite(own["scores"]).all() for own in kept.values())


def test_a_comparison_by_speaker_keeps_and_reports_speakers(comparison_config, demo_files, tmp_path, capsys):
    """From the map that the config names to the report; a quarter of the labels that validates is one speaker's, too."""
    folds = json.loads((demo_files / "folds.json").read_text())
    who = {r: f"{fold}-{'xy'[i > 0]}" for fold, ids in folds.items() for i, r in enumerate(ids)}  # two in each fold
    (tmp_path / "speakers.json").write_text(json.dumps(who))
    config = comparison_config.copy_and_resolve_references()
    files = {"features": "DEMO_COVAREP.csd", "labels": "DEMO_Labels.csd", "folds": "folds.json"}
    config.data.update({field: str(demo_files / name) for field, name in files.items()})
    config.data.update({"prepared": "", "corpus": "demo", "speakers": str(tmp_path / "speakers.json")})
    arms = {"arms": ("scratch", "functionals"), "label_counts": (12,), "seeds": 1, "strategies": ("linear", "full"), "validation": "budget"}
    config.compare.update(arms)
    rows = [row for row in compare.run(config, tmp_path) if row["arm"] != "constant"]
    for row in rows:
        assert row["unit"] == "speaker"
        kept = results.load_arrays(tmp_path / row["predictions"])["recordings"]
        assert kept.tolist() == ["test-x"] * 6 + ["test-y"] * 12
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "over the 2 test speakers, then" in text and "of speakers of their own" in text
    assert "each speaker's own frames and segments, test speakers too" in capsys.readouterr().out


def test_a_model_that_needs_enrolment_says_so_to_strangers(tiny_config, trained):
    folder, _ = trained(tiny_config("scratch", {"data.normalise_by": "enrolment", "train.steps": 2}))
    with pytest.raises(UserError, match="This model is normalised by enrolment, .* train it with data.normalise_by=recording"):
        load_model(folder)(np.zeros((100, 74), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.normalise_by": "speaker"}, "data.normalise_by is 'speaker': choose one of recording, enrolment, neutral, causal, none"),
        ({"data.enrolment": 0}, "data.enrolment is 0, but must lie between 1"),
        ({"objective.standards_prior": -1.0}, "objective.standards_prior is -1.0, but must lie between 0"),
        ({"objective.standards_prior": math.nan}, "objective.standards_prior is nan"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message, tiny_config):
    with pytest.raises(UserError, match=message):
        fields.check(tiny_config("scratch", changes))


def test_neutral_enrolment_needs_labels(spoilt):
    loaded, _ = spoilt(0, 0)
    bare = {name: dataclasses.replace(fold, labels=fold.labels[:, :0]) for name, fold in loaded.folds.items()}
    with pytest.raises(UserError, match="data.normalise_by is neutral, but .* has no labels: give enrolment, or another"):
        steps(dataclasses.replace(loaded, folds=bare, emotions=()), "neutral", 1.0)
