"""Evaluating a finished run; the commands and their mistakes are tested in test_main.py."""

import importlib
import json
import shutil

import numpy as np
import pytest

from jax_emossl import results
from jax_emossl.data import csd
from jax_emossl.errors import UserError
from jax_emossl.tasks import evaluate


@pytest.fixture
def evaluated(tmp_path):
    """Evaluates a run as the command line does; returns the model's and the constant's row."""

    def run(source, fold="test", **data):
        config = importlib.import_module("configs.evaluate").get_config()
        config.update(init_from=str(source), fold=fold)
        config.data.update(data)
        rows = evaluate.run(config, tmp_path)
        assert results.read(tmp_path / results.RESULTS_FILE)["runs"] == rows
        return rows

    return run


@pytest.fixture
def other(demo_files, tmp_path):
    """Makes another corpus of the demo's files, without the first `less` training recordings, and `slower` in frames per second."""

    def make(name, less=0, slower=1):
        folds = json.loads((demo_files / "folds.json").read_text())
        folds["train"] = folds["train"][less:]
        (tmp_path / "folds.json").write_text(json.dumps(folds))
        files = [tmp_path / f"{name}.csd", tmp_path / f"{name}_labels.csd"]
        for source, target, times in zip(("DEMO_COVAREP.csd", "DEMO_Labels.csd"), files, (True, False), strict=True):
            with csd.Sequence(demo_files / source) as sequence:
                entries = [(id_, *sequence.read(id_)) for id_ in sequence.ids]
                if times and slower > 1:
                    entries = [(id_, *_slower(x, t, slower)) for id_, x, t in entries]
                csd.write(target, sequence.root, entries, sequence.metadata)
        return {"features": str(files[0]), "labels": str(files[1]), "folds": str(tmp_path / "folds.json")}

    return make


def _slower(frames, times, factor):
    """Means of so many frames, where they have finite values, and the times of all of them."""
    number = len(frames) // factor
    kept = np.where(np.isfinite(frames), frames, 0)[: number * factor].reshape(number, factor, -1).mean(1)
    return kept.astype(np.float32), np.column_stack([times[: number * factor : factor, 0], times[factor - 1 : number * factor : factor, 1]])


def test_a_corpus_that_is_given_has_its_own_name_and_the_run_keeps_its_number_of_labels(evaluated, finetuning, other):
    model, constant = evaluated(finetuning, **other("ELSEWHERE", less=2))
    assert (model["corpus"], constant["corpus"]) == ("ELSEWHERE", "ELSEWHERE")  # not demo, on which the run was trained
    assert (model["arm"], model["num_labels"], constant["num_labels"]) == ("pretrained", 36, 24)  # all labels it was trained on


def test_a_prepared_corpus_knows_its_name(evaluated, finetuning, demo_corpus, tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    for fold in demo_corpus.folds:
        (folder / fold).symlink_to(demo_corpus.path / fold)
    table = json.loads((demo_corpus.path / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(table | {"name": "renamed"}))
    model, _ = evaluated(finetuning, prepared=str(folder))
    trained = results.read(finetuning / results.RESULTS_FILE)["runs"][2]
    assert model == trained | {"corpus": "renamed"}


def test_a_run_on_a_part_of_the_labels_keeps_their_number(evaluated, trained, tiny_config):
    folder, rows = trained(tiny_config("scratch", {"train.strategy": "probe"}, num_labels=12))
    assert rows[0]["num_labels"] == 12
    model, _ = evaluated(folder)
    assert model == rows[2]
    # `frozen` is the linear read-out of a comparison; here a gradient has trained the head of an encoder that stays as it was.
    assert (model["arm"], model["selection"]["strategy"]) == ("scratch", "probe")


def test_folds_of_ones_own_are_taken_with_the_runs_own_files(evaluated, trained, tiny_config, other, demo_files):
    files = other("MINE")
    folder, rows = trained(tiny_config("scratch", {"data.prepared": "", "train.steps": 2} | {f"data.{k}": v for k, v in files.items()}))
    (demo_files / "fewer.json").write_text(json.dumps(json.loads((demo_files / "folds.json").read_text()) | {"test": ["demo_test_000"]}))
    model, _ = evaluated(folder, folds=str(demo_files / "fewer.json"))
    assert model["corpus"] == rows[2]["corpus"] == "MINE" and model["metrics"] != rows[2]["metrics"]


def test_a_corpus_of_another_hop_is_seen_in_model_steps_of_the_same_duration(evaluated, trained, tiny_config, other, monkeypatch):
    folder, _ = trained(tiny_config("scratch", {"data.stack": 0.02, "train.steps": 2}))
    built = []
    build = evaluate.build
    monkeypatch.setattr(evaluate, "build", lambda *a, **k: built.append(build(*a, **k)) or built[0])
    evaluated(folder, **other("SLOW", slower=2))
    frontend, card = built[0].frontend, json.loads((folder / "card.json").read_text())["frontend"]
    assert (card["pool"], card["stack"], card["frame_seconds"]) == (2, 1, pytest.approx(0.01))
    assert (frontend.pool, frontend.stack, frontend.frame_seconds) == (1, 1, pytest.approx(0.02))
    np.testing.assert_array_equal(frontend.train.mean, built[0].corpus.train_statistics.mean)


def test_a_corpus_whose_hop_does_not_fit_is_refused(evaluated, finetuning, other):
    with pytest.raises(UserError, match="stacks 8 frames in a model step of 0.16 s where the corpus has 4: pretrain on features of"):
        evaluated(finetuning, **other("SLOWER", slower=4))


def test_weights_of_other_shapes_than_the_config_makes_are_refused(evaluated, finetuning, tmp_path):
    """As those of another version may be."""
    copy = shutil.copytree(finetuning, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["model"]["layers"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="copy holds weights of other shapes than this version makes of its config: train anew"):
        evaluated(copy)


def test_other_folds_of_a_prepared_corpus_are_refused(evaluated, finetuning, demo_files):
    with pytest.raises(UserError, match="which has one set of labels, folds and speakers: prepare the corpus with the others"):
        evaluated(finetuning, folds=str(demo_files / "folds.json"))


def test_a_pretraining_is_evaluated_on_labels_of_any_emotions(evaluated, pretraining, other):
    files = other("ELSEWHERE")
    with csd.Sequence(files["labels"]) as said:
        entries = [(entry, said.read(entry)[0][:, :2], said.intervals(entry)) for entry in said.ids]
    csd.write(files["labels"], "All Labels", entries, {"dimension names": ["joy", "gloom"]})
    model, _ = evaluated(pretraining, **files)
    assert model["arm"] == "pretrain" and model["corpus"] == "ELSEWHERE"
