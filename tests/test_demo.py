import json

import numpy as np
import pytest

from jax_emossl import config as fields
from jax_emossl.data import corpora, csd
from jax_emossl.data.corpora import demo


@pytest.fixture(scope="module")
def features(demo_files):
    with csd.Sequence(demo_files / "DEMO_COVAREP.csd") as file:
        yield file, {id_: file.read(id_) for id_ in file.ids}


@pytest.fixture(scope="module")
def labels(demo_files):
    with csd.Sequence(demo_files / "DEMO_Labels.csd") as file:
        yield file, {id_: file.read(id_) for id_ in file.ids}


def test_the_corpus_is_the_same_every_time_and_another_for_another_seed(demo_files, features, labels, tmp_path):
    def content(folder):
        with csd.Sequence(folder / "DEMO_COVAREP.csd") as x, csd.Sequence(folder / "DEMO_Labels.csd") as y:
            return {id_: [*x.read(id_), *y.read(id_)] for id_ in x.ids}

    for name, seed in (("again", demo._SEED), ("other", 1)):
        (tmp_path / name).mkdir()
        demo.generate(tmp_path / name, folds={"train": 6, "valid": 3, "test": 3}, seed=seed)
    first, again, other = content(demo_files), content(tmp_path / "again"), content(tmp_path / "other")
    for id_, arrays in first.items():
        for a, b in zip(arrays, again[id_], strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(first[id_][3], other[id_][3])


def test_it_has_cmu_moseis_form(features):
    file, entries = features
    names = file.metadata["dimension names"]
    assert len(names) == 74 and names[:2] == ["F0", "VUV"] and file.metadata["synthetic"] is True
    for frames, intervals in entries.values():
        assert frames.shape == (len(intervals), 74) and frames.dtype == np.float32
        np.testing.assert_allclose(np.diff(intervals[:, 0]), 0.01, atol=1e-9)


def test_it_has_covareps_traits(features):
    frames = np.concatenate([frames for frames, _ in features[1].values()])
    pitch, voiced = frames[:, 0], frames[:, 1]
    assert set(np.unique(voiced)) == {0, 1} and 0.2 < voiced.mean() < 0.9
    np.testing.assert_array_equal(pitch == 0, voiced == 0)
    assert pitch[voiced == 1].min() > 40 and pitch.max() < 600
    assert np.isneginf(frames).any() and np.isnan(frames).any() and not np.isposinf(frames).any()
    assert np.isfinite(frames).mean() > 0.99


def test_intensities_are_mostly_zero_correlated_thirds(labels):
    file, entries = labels
    assert tuple(file.metadata["dimension names"]) == demo.EMOTIONS
    values = np.concatenate([x for x, _ in entries.values()])
    np.testing.assert_allclose(values * 3, np.round(values * 3), atol=1e-5)
    assert values.min() == 0 and values.max() <= 3 and (values == 0).mean() > 0.6
    assert ((values > 0).sum(1) > 1).any() and (values == 0).all(1).any()
    many = demo._intensities(np.random.default_rng(0), 5000)
    np.testing.assert_allclose((many > 0).mean(0), demo._PREVALENCE, atol=0.03)
    correlation = np.corrcoef((many > 0).T)
    assert correlation[2, 4] > 0.3 and correlation[0, 1] < -0.15  # anger with disgust, happy without sad


def test_recordings_hold_several_segments_of_seconds_and_unlabelled_stretches(features, labels):
    for id_, (_, spans) in labels[1].items():
        frames, intervals = features[1][id_]
        seconds = spans[:, 1] - spans[:, 0]
        assert len(spans) == 6 and seconds.min() >= 1.5 and seconds.max() <= 9
        assert (spans[1:, 0] > spans[:-1, 1]).all() and intervals[-1, 1] > spans[-1, 1]


def test_folds_are_by_recording(demo_files, features, labels):
    folds = json.loads((demo_files / "folds.json").read_text())
    assert {fold: len(ids) for fold, ids in folds.items()} == {"train": 6, "valid": 3, "test": 3}
    ids = [id_ for fold in folds.values() for id_ in fold]
    assert sorted(ids) == features[0].ids == labels[0].ids


def test_emotion_is_in_the_dynamics_not_in_level_or_size():
    effects = np.zeros((2, 6, 6))
    effects[0, 1, 2] = 1  # the second emotion quickens the third oscillation
    calm, sad = (
        demo._oscillations(np.random.default_rng(0), 200_000, intensity, np.zeros(6), effects)
        for intensity in (np.zeros(6), np.eye(6)[1] * 3)
    )

    def tempo(x):
        return np.mean(np.diff(np.sign(x), axis=0) != 0, axis=0)

    np.testing.assert_allclose(calm.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(sad.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(calm.std(0), 1, atol=0.05)
    np.testing.assert_allclose(sad.std(0), 1, atol=0.05)
    change = tempo(sad) / tempo(calm)
    assert change[2] > 1.4
    np.testing.assert_allclose(np.delete(change, 2), 1, atol=0.05)


def test_speakers_differ_in_level(demo_corpus):
    means = np.array([demo_corpus.statistics[r].mean for r in demo_corpus.train_recordings])
    assert np.median(means.std(0)) > 0.25


def test_it_is_the_default_corpus_and_is_made_once(tiny_config):
    config = tiny_config("scratch", {"data.prepared": ""})
    fields.resolve(config)
    config = config.data
    loaded = corpora.load(config)
    assert (loaded.name, loaded.synthetic, loaded.emotions) == ("demo", True, demo.EMOTIONS)
    assert {name: len(fold) for name, fold in loaded.folds.items() if name != "train_unlabelled"} == {
        "train": 432,
        "valid": 144,
        "test": 144,
    }
    files = demo.files()
    made = [corpora.Path(path).stat().st_mtime_ns for path in (files.features, files.labels)]
    assert corpora.load(config).path == loaded.path
    assert made == [corpora.Path(path).stat().st_mtime_ns for path in (files.features, files.labels)]
