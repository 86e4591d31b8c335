import contextlib
import json
import subprocess

import ml_collections
import numpy as np
import pytest

from jax_emossl import __version__, results
from jax_emossl.arms import ARMS
from jax_emossl.errors import UserError

ROW = {"corpus", "synthetic", "arm", "num_labels", "seed", "fold", "step", "selection", "metrics", "undefined"}


def strict(path):
    """Reads JSON as the standard has it, without NaN and infinity."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("run", ["pretraining", "finetuning", "comparison"])
def test_results_have_the_documented_form(run, request, demo_corpus):
    folder = request.getfixturevalue(run)
    table = strict((folder[0] if run == "comparison" else folder) / "results.json")
    assert (
        set(table) == {"runs", "config", "command", "version", "commit"}
        and table["version"] == __version__
        and isinstance(table["config"], dict)
    )
    assert table["runs"]
    for row in table["runs"]:
        compared = {"variant", "folds", "budget", "unit"} | (
            {"predictions", "classes", "pretraining"} if row["arm"] != "constant" else set()
        )
        assert set(row) == ROW | (compared if run == "comparison" else set())
        assert row["corpus"] == "demo" and row["synthetic"] is True
        assert row["arm"] in {*ARMS, "pretrain"}
        assert type(row["num_labels"]) is int and type(row["seed"]) is int and row["fold"] in ("train", "valid", "test")
        if row["arm"] == "constant":
            assert row["step"] is None and row["selection"] is None
        else:
            assert type(row["step"]) is int or "regularisation" in row["selection"]
            assert {"fold", "metric", "value"} <= set(row["selection"]) and row["selection"]["fold"] == "valid"
        if run == "pretraining":
            told = set() if row["arm"] == "constant" else {"loss_of_statistics", "total_loss"}
            assert set(row["metrics"]) == {"loss"} | told
        else:
            assert set(row["metrics"]["per_emotion"]) == set(demo_corpus.emotions)
            for emotion in row["metrics"]["per_emotion"].values():
                assert {"mae", "accuracy4"} <= set(emotion)
        nones = {name for name, value in row["metrics"].items() if value is None}
        nones |= {f"per_emotion.{e}.{n}" for e, m in row["metrics"].get("per_emotion", {}).items() for n, v in m.items() if v is None}
        assert nones == set(row["undefined"]) and all(row["undefined"].values())


def test_the_category_head_gives_recalls_and_a_confusion_matrix(tiny_config, trained, demo_corpus):
    folder, _ = trained(tiny_config("scratch", {"objective.head": "category"}))
    rows = strict(folder / "results.json")["runs"]
    for row in rows:
        values, number = row["metrics"], len(demo_corpus.fold(row["fold"]))
        assert {"uar", "f1_macro", "accuracy"} <= set(values)
        confusion, classes = np.array(values["confusion"]["matrix"]), values["confusion"]["classes"]
        assert classes[0] == "neutral" and confusion.shape == (len(classes), len(classes)) and confusion.sum() <= number
        assert values["accuracy"] == pytest.approx(np.trace(confusion) / number)
        recalls = {name: emotion["recall"] for name, emotion in values["per_emotion"].items()}
        assert set(recalls) == set(classes)
        assert {f"per_emotion.{name}.recall" for name, recall in recalls.items() if recall is None} == set(row["undefined"])
    assert rows[0]["selection"]["metric"] == "uar"


def test_all_labels_are_given_as_their_number(finetuning, comparison):
    rows = [row for row in results.read(finetuning / "results.json")["runs"] if row["arm"] == "pretrained"]
    assert {row["num_labels"] for row in rows} == {36}
    assert {row["num_labels"] for row in comparison[1]} == {12, 36}


def test_the_selection_value_is_the_validation_folds(finetuning):
    valid, test = [row for row in results.read(finetuning / "results.json")["runs"] if row["arm"] == "pretrained"]
    assert valid["fold"] == "valid" and valid["selection"] == test["selection"]
    chosen = {"fold": "valid", "metric": "auroc", "value": pytest.approx(valid["metrics"]["auroc"]), "strategy": "probe-then-full"}
    assert valid["selection"] == chosen


def test_an_infinite_prior_survives_in_the_config(tmp_path):
    config = ml_collections.ConfigDict({"data": {"norm_prior": float("inf")}})
    results.write(tmp_path / "results.json", [], config)
    assert strict(tmp_path / "results.json")["config"] == {"data": {"norm_prior": "inf"}}


def test_the_commit_is_of_a_repository_that_tracks_the_code_not_of_one_around_it(tmp_path, monkeypatch):
    def git(*words):
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    installed, other = tmp_path / "site-packages" / "results.py", tmp_path / "other.py"
    installed.parent.mkdir()
    for file in (installed, other):
        file.write_text("")
    monkeypatch.setattr(results, "__file__", str(installed))
    commit = results._commit.__wrapped__
    assert commit() is None
    git("init", "-q")
    git("add", "other.py")
    git("commit", "-qm", "around it")
    assert commit() is None
    git("add", ".")
    git("commit", "-qm", "its own")
    assert commit() == git("rev-parse", "--short=7", "HEAD")
    other.write_text("1")
    assert commit() == git("rev-parse", "--short=7", "HEAD") + ", changed since"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"runs": 3}', '{"runs": [{}], "config": {}, "version": "1"}', '{"runs": [], "config": 1, "version": "1"}']
)
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json .*: run the experiment anew"):
        results.read(tmp_path / "results.json")


CELL = {
    "corpus": "demo", "synthetic": True, "arm": "scratch", "num_labels": 30, "seed": 0, "fold": "test", "step": 1, "undefined": {},
    "selection": {"fold": "valid", "metric": "uar", "value": 0.5, "strategy": "full", "learning_rate": 1e-3},
    "metrics": {"uar": 0.5}, "variant": "", "folds": "", "budget": 30, "predictions": "x.npz", "classes": ["happy", "sad"],
}  # fmt: skip


@pytest.mark.parametrize("name", [None, *sorted(set(CELL) - {"undefined"}), "strategy", "learning_rate"])
def test_all_that_a_report_needs_must_be_there(name, tmp_path):
    damaged = json.loads(json.dumps(CELL))
    if name:
        (damaged if name in damaged else damaged["selection"])[name] = {"not": "so"}
    (tmp_path / "results.json").write_text(json.dumps({"runs": [damaged], "config": {}, "version": "1"}))
    with contextlib.nullcontext() if name is None else pytest.raises(UserError, match="results.json .*: run the experiment anew"):
        results.read(tmp_path / "results.json")


def test_an_arm_may_have_any_name(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"runs": [CELL | {"arm": "toy"}], "config": {}, "version": "1"}))
    assert results.read(tmp_path / "results.json")["runs"][0]["arm"] == "toy"


def test_the_table_shows_every_row_with_the_metrics_there_are(finetuning):
    lines = results.table(results.read(finetuning / "results.json")["runs"]).splitlines()
    assert lines[0].split()[:6] == ["arm", "labels", "seed", "fold", "step", "mae"]
    assert [line.split()[0] for line in lines[1:]] == ["pretrained", "constant"] * 2
    assert len({len(line) for line in lines}) == 1


def test_what_is_undefined_is_a_dash_not_a_number():
    row = {"arm": "scratch", "num_labels": 1, "seed": 0, "fold": "test", "step": 3}
    table = results.table([row | {"metrics": {"mae": None, "auroc": 0.5}}, row | {"metrics": {"mae": 0.25, "auroc": None}}])
    assert [line.split()[-2:] for line in table.splitlines()] == [["mae", "auroc"], ["-", "0.500"], ["0.250", "-"]]
