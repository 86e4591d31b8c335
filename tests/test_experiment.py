import dataclasses
import json
import re

import h5py
import numpy as np
import pytest

from jax_emossl.data import corpora, corpus, csd, prepared
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler
from jax_emossl.data.statistics import Statistics
from jax_emossl.encoders.transformer import locality, slopes
from jax_emossl.errors import UserError
from jax_emossl.experiment import build


@pytest.fixture(scope="module")
def spoilt_folder(demo_files, tmp_path_factory):
    """The demo corpus with other values and labels in every validation and test recording, prepared."""
    folder = tmp_path_factory.mktemp("spoilt")
    folds = json.loads((demo_files / "folds.json").read_text())
    held_out = {*folds["valid"], *folds["test"]}
    rng = np.random.default_rng(0)
    for name in ("DEMO_COVAREP.csd", "DEMO_Labels.csd"):
        with csd.Sequence(demo_files / name) as source:
            entries = [(id_, *source.read(id_)) for id_ in source.ids]
            spoilt = [(id_, 3 * rng.random(x.shape).astype(np.float32) if id_ in held_out else x, t) for id_, x, t in entries]
            csd.write(folder / name, source.root, spoilt, source.metadata)
    corpus.build(
        folder / "DEMO_COVAREP.csd",
        folder / "DEMO_Labels.csd",
        demo_files / "folds.json",
        folder / "prepared",
        unlabelled=True,
        name="demo",
    )
    return folder / "prepared"


def batches(experiment, steps=5):
    segments = experiment.training_segments()
    sampler = Sampler(segments.lengths, 8, experiment.frontend.steps(experiment.config.train.crop), 8.0)
    return [segments.gather(sampler.indices(0, step)) for step in range(steps)]


@pytest.mark.parametrize("name", ["pretrain", "scratch"])
def test_held_out_recordings_touch_neither_statistics_nor_training_batches(name, tiny_config, spoilt_folder):
    clean, spoilt = build(tiny_config(name)), build(tiny_config(name, {"data.prepared": str(spoilt_folder)}))
    assert not np.array_equal(clean.corpus.fold("test").frames, spoilt.corpus.fold("test").frames)
    assert clean.frontend.to_json() == spoilt.frontend.to_json()
    for a, b in zip(batches(clean), batches(spoilt), strict=True):
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


def test_pretraining_takes_the_same_steps_whatever_the_held_out_recordings_hold(tiny_config, trained, pretraining, spoilt_folder):
    other, _ = trained(tiny_config("pretrain", {"data.prepared": str(spoilt_folder)}))
    rows = [[json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (pretraining, other)]
    clean, spoilt = ([row for row in run if "train/loss" in row] for run in rows)
    assert clean == spoilt and len(clean) > 1
    assert rows[0] != rows[1]  # the validation loss did change


def test_a_share_of_the_unlabelled_data_is_a_random_choice_of_that_size(tiny_config):
    whole = build(tiny_config("pretrain")).training_segments()
    half = build(tiny_config("pretrain", {"train.share": 0.5})).training_segments()
    other = build(tiny_config("pretrain", {"train.share": 0.5}, seed=1)).training_segments()
    assert len(half) == len(other) == round(len(whole) / 2)
    assert set(half.positions) < set(whole.positions) and half.positions.tolist() != other.positions.tolist()
    assert "share" not in tiny_config("scratch").train  # labelled segments are counted


def test_pretraining_sees_the_training_recordings_only_but_their_unlabelled_stretches_too(tiny_config, demo_corpus):
    segments = build(tiny_config("pretrain")).training_segments()
    assert set(segments.recordings) == set(demo_corpus.train_recordings)
    assert len(segments) == len(demo_corpus.fold("train")) + len(demo_corpus.fold("train_unlabelled"))


def test_a_label_budget_limits_the_training_segments(tiny_config, demo_corpus):
    experiment = build(tiny_config("scratch", num_labels=12))
    assert len(experiment.training_segments()) == 12
    assert len(build(tiny_config("scratch")).training_segments()) == len(demo_corpus.fold("train"))
    assert len(experiment.segments("valid")) == len(demo_corpus.fold("valid"))


@pytest.mark.parametrize("fold", ["valid", "test"])
def test_an_encoder_that_has_seen_a_held_out_recording_is_refused(fold, tiny_config, pretraining, demo_files, tmp_path):
    folds = json.loads((demo_files / "folds.json").read_text())
    folds["train"][0], folds[fold][0] = folds[fold][0], folds["train"][0]
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    files = {name: str(demo_files / f"DEMO_{file}.csd") for name, file in (("features", "COVAREP"), ("labels", "Labels"))}
    fields = {"data.prepared": "", "data.corpus": "demo", "data.folds": str(tmp_path / "folds.json")}
    fields |= {f"data.{name}": path for name, path in files.items()}
    with pytest.raises(UserError, match=f"was trained on recording '{folds[fold][0]}', which these folds hold out"):
        build(tiny_config("finetune", fields, init_from=str(pretraining)))


def test_durations_move_with_the_encoder_and_the_training_fold_normalises(tiny_config, pretraining, demo_corpus, tmp_path, capsys):
    folder = tmp_path / "other"
    other = json.loads((demo_corpus.path / "corpus.json").read_text())
    other["name"] = "other"
    other["statistics"]["train"]["mean"] = [0.0] * 74
    folder.mkdir()
    for fold in demo_corpus.folds:
        (folder / fold).symlink_to(demo_corpus.path / fold)
    (folder / "corpus.json").write_text(json.dumps(other))
    experiment = build(tiny_config("finetune", {"data.prepared": str(folder), "data.norm_prior": 7.0}, init_from=str(pretraining)))
    own = Statistics.from_json(other["statistics"]["train"])
    assert experiment.frontend.to_json() == Frontend(demo_corpus.features, own, 7.0, 5.0, 2, 8, 0.01, "recording", 8).to_json()
    told = capsys.readouterr().err
    assert "data.norm_prior=180.0 is the checkpoint's but the config's stands, 7.0" in told
    assert "features are normalised toward the training fold of other; the encoder was pretrained on demo, toward its own" in told


def test_the_frames_of_a_model_step_are_counted_for_the_hop_of_the_new_corpus(tiny_config, pretraining, demo_corpus):
    config = tiny_config("finetune", init_from=str(pretraining))
    frontend = build(config, dataclasses.replace(demo_corpus, hop=0.02)).frontend
    assert (frontend.pool, frontend.stack, frontend.frame_seconds) == (1, 8, 0.02)  # 2 and 8 of 10 ms in the pretraining
    with pytest.raises(UserError, match="stacks 8 frames in a model step of 0.16 s where the corpus has 4: pretrain on .*, 0.04 s"):
        build(config, dataclasses.replace(demo_corpus, hop=0.04))


@pytest.mark.parametrize(
    ("config", "fields", "arm"),
    [
        ("pretrain", {}, "pretrain"),
        ("scratch", {}, "scratch"),
        ("finetune", {}, "pretrained"),
        ("scratch", {"train.strategy": "probe"}, "scratch"),
        ("finetune", {"train.strategy": "probe"}, "pretrained"),  # not `frozen`, which is a linear arm of a comparison
    ],
)
def test_a_run_is_named_by_what_it_starts_from(config, fields, arm, tiny_config, pretraining):
    top = {"init_from": str(pretraining)} if config == "finetune" else {}
    assert build(tiny_config(config, fields, **top)).arm == arm


def test_a_new_corpus_is_one_new_file_found_by_its_name(tiny_config, demo_files, tmp_path, monkeypatch):
    lines = ["from jax_emossl.data.corpora import Files", "def files():"]
    paths = [str(demo_files / name) for name in ("DEMO_COVAREP.csd", "DEMO_Labels.csd", "folds.json")]
    (tmp_path / "romulan.py").write_text("\n".join([*lines, f"    return Files(*{paths})"]))
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    loaded = corpora.load(tiny_config("scratch", {"data.prepared": "", "data.corpus": "romulan"}).data)
    assert (loaded.name, len(loaded.fold("train"))) == ("romulan", 36)


def test_files_of_ones_own_take_the_place_of_the_named_corpus(tiny_config, demo_files):
    fields = {"data.features": "DEMO_COVAREP.csd", "data.labels": "DEMO_Labels.csd", "data.folds": "folds.json"}
    paths = {name: str(demo_files / file) for name, file in fields.items()}
    loaded = corpora.load(tiny_config("scratch", {"data.prepared": ""} | paths).data)
    assert (loaded.name, len(loaded.features), loaded.emotions[0], loaded.synthetic) == ("DEMO_COVAREP", 74, "happy", True)
    again = corpora.load(tiny_config("scratch", {"data.prepared": ""} | paths).data)
    assert again.path == loaded.path  # prepared once


def test_changed_files_are_prepared_anew(tiny_config, demo_files, tmp_path):
    labels = tmp_path / "labels.csd"
    labels.write_bytes((demo_files / "DEMO_Labels.csd").read_bytes())
    fields = {"data.prepared": "", "data.features": str(demo_files / "DEMO_COVAREP.csd"), "data.labels": str(labels)}
    fields["data.folds"] = str(demo_files / "folds.json")
    before = corpora.load(tiny_config("scratch", fields).data)
    with h5py.File(labels, "r+") as file:
        for entry in file["All Labels/data"].values():
            entry["features"][...] = 1
    after = corpora.load(tiny_config("scratch", fields).data)
    assert before.path != after.path and not (before.fold("train").labels == 1).all()
    assert (after.fold("train").labels == 1).all()


def test_sentiment_is_never_an_emotion(tiny_config, demo_files, tmp_path):
    with csd.Sequence(demo_files / "DEMO_Labels.csd") as source:
        entries = [(id_, *source.read(id_)) for id_ in source.ids]
    seven = [(id_, np.column_stack([np.full(len(x), -2), x]), t) for id_, x, t in entries]
    csd.write(tmp_path / "labels.csd", "All Labels", seven)  # seven unnamed columns: CMU-MOSEI's
    fields = {"data.prepared": "", "data.features": str(demo_files / "DEMO_COVAREP.csd"), "data.labels": str(tmp_path / "labels.csd")}
    loaded = corpora.load(tiny_config("scratch", fields | {"data.folds": str(demo_files / "folds.json")}).data)
    assert loaded.emotions == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    own = prepared.load(corpora.load(tiny_config("scratch").data).path)
    np.testing.assert_array_equal(loaded.fold("test").labels, own.fold("test").labels)


def test_attention_reaches_as_far_in_seconds_whatever_a_model_step_is(tiny_config, demo_corpus):
    def bias(stack, length):
        encoder = build(tiny_config("pretrain", {"data.stack": stack, "model.heads": 4}), demo_corpus).objective.encoder
        steps = np.arange(length)
        return np.asarray(locality(steps - steps[:, None], slopes(encoder.heads, encoder.near, encoder.far)))

    coarse, fine = bias(0.16, 20), bias(0.04, 80)
    np.testing.assert_allclose(coarse, fine[:, ::4, ::4], rtol=1e-6)
    np.testing.assert_allclose(-coarse[::2, 19, 0], 19 * 0.16 / np.array([0.32, 1.28]), rtol=1e-6)


def test_a_fine_tuning_may_compute_its_encoder_otherwise_than_the_pretraining(tiny_config, pretraining):
    fields = {"model.dtype": "bfloat16", "model.remat": True}
    encoder = build(tiny_config("finetune", fields, init_from=str(pretraining))).objective.encoder
    assert (encoder.dtype, encoder.remat) == ("bfloat16", True)
    with pytest.raises(UserError, match="has model.far=1.28 where the config has 2.56: give --config.model.far=1.28"):
        build(tiny_config("finetune", {"model.far": 2.56}, init_from=str(pretraining)))


def test_a_crop_that_cuts_nothing_is_told_with_the_longest_segment(tiny_config):
    for crop, said in ((0.0, False), (1.92, False), (8.0, False), (100.0, True)):
        experiment = build(tiny_config("scratch", {"train.crop": crop}))
        sentence = experiment.crop_notice(experiment.segments("train"))
        assert bool(sentence) is said
    assert re.fullmatch(r"train.crop is 100 s, but no training segment of demo is longer than \S+ s: all are taken whole\.", sentence)
