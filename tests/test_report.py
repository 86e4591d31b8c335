import csv
import json
import re
import shutil

import numpy as np
import pytest

from jax_emossl import metrics, report, results
from jax_emossl.errors import UserError

CLASSES = ["neutral", "happy", "sad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A made-up comparison with categories: two rotations of three recordings, two arms, three label counts, two seeds."""
    out = tmp_path_factory.mktemp("made-up")
    rng = np.random.default_rng(0)
    rows = []
    for rotation in ("a", "b"):
        target = rng.integers(0, 3, 90)
        names = np.repeat([f"{rotation}{i}" for i in range(3)], 30)
        rows.append({**common(rotation, "constant", 0, 0), "metrics": {"uar": 1 / 3, "f1_macro": 0.2, "accuracy": 0.3}})
        for arm, skill in (("pretrained", 1.5), ("scratch", 0.5)):
            for budget in (30, 60, 0):
                for seed in (0, 1):
                    scores = rng.normal(size=(90, 3)) + (skill + budget / 100 + 1.0 * (budget == 0)) * np.eye(3)[target]
                    kept = results.keep_predictions(
                        out, report.Path(f"{rotation}-{arm}-{budget}-{seed}"), scores=scores, target=target, recordings=names
                    )
                    strategy = {"fold": "valid", "metric": "uar", "value": 0.5, "strategy": "full", "learning_rate": 1e-3}
                    made = {"metrics": {"uar": 0.5}, "selection": strategy, "predictions": kept, "classes": CLASSES}
                    rows.append({**common(rotation, arm, budget, seed), **made})
    table = {
        "runs": rows,
        "config": {"data": {"norm_prior": 180.0}},
        "command": "python -m jax_emossl.main --config=x.py",
        "version": "9.9",
    }
    (out / "results.json").write_text(json.dumps(table))
    return out


def common(rotation, arm, budget, seed):
    return {
        "corpus": "demo", "synthetic": True, "arm": arm, "num_labels": budget or 200, "seed": seed, "fold": "test", "step": 1,
        "selection": None, "undefined": {}, "variant": "", "folds": rotation, "budget": budget,
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(folder):
    return report.write(folder)


def test_every_table_is_there_in_three_forms_and_every_figure_in_two(folder, written):
    for name in ("uar", "f1_macro", "accuracy", "difference_scratch", "label_efficiency_scratch", "per_emotion", "choices"):
        csv_, tex = (folder / "tables" / f"{name}{end}" for end in (".csv", ".tex"))
        assert csv_.stat().st_size and "\\toprule" in tex.read_text() and "jax_emossl 9.9" in tex.read_text()
        for line in re.findall(r"^.*\\\\$", tex.read_text(), re.M):
            assert len(re.findall(r"(?<!\\)&", line)) == len(next(csv.reader(csv_.open()))) - 1
    for name in ("learning_curve_uar", "gains_per_emotion", "confusion_60", "confusion_all"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_report_names_corpus_seeds_command_and_version_and_marks_synthetic_data(folder, written):
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        for words in (
            "demo (SYNTHETIC)",
            "seeds 0, 1",
            "--config=x.py",
            "jax_emossl 9.9",
            "2 rotations",
            "6 test recordings",
            "(transductive)",
        ):
            assert words in text
    assert "http" not in (folder / "report.html").read_text()  # self-contained


def test_tables_hold_estimates_with_intervals_and_the_constant(folder, written):
    rows = dict(line.split(",", 1) for line in (folder / "tables" / "uar.csv").read_text().splitlines())
    assert set(rows) == {"arm", "pretrained", "scratch", "constant"} and rows["arm"] == "30,60,all (200)"
    comparison = report.Comparison(folder)
    e = comparison.estimate("", "pretrained", 30, "uar")
    assert f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" in rows["pretrained"] and e.low < e.value < e.high
    assert "0.333" in rows["constant"]
    assert "p = 0.031" in (folder / "tables" / "difference_scratch.csv").read_text()  # 2 / 2^6, the smallest there is


def test_confusions_count_every_rotation_and_seed(folder):
    comparison = report.Comparison(folder)
    assert comparison.confusion("pretrained", 30).sum() == 90 * 2 * 2


def test_the_report_is_made_from_its_folder_alone_and_remade_the_same(folder, written, tmp_path):
    shutil.copytree(folder / "predictions", tmp_path / "predictions")
    shutil.copy(folder / "results.json", tmp_path)
    report.write(tmp_path)
    for name in ("report.md", "tables/uar.tex", "figures/learning_curve_uar.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_comparison_under_way_has_a_report_too(folder, tmp_path):
    table = json.loads((folder / "results.json").read_text())
    table["runs"] = [r for r in table["runs"] if r["arm"] != "scratch" or (r["folds"], r["seed"]) != ("b", 1)][:-2]
    shutil.copytree(folder / "predictions", tmp_path / "predictions")
    (tmp_path / "results.json").write_text(json.dumps(table))
    assert "pretrained" in report.write(tmp_path)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the made-up comparison whose results.json `change(table)` has altered."""

    def make(change):
        table = json.loads((folder / "results.json").read_text())
        change(table)
        shutil.copytree(folder / "predictions", tmp_path / "predictions")
        (tmp_path / "results.json").write_text(json.dumps(table))
        return tmp_path

    return make


def test_a_report_of_the_validation_fold_says_so(changed):
    def valid(table):
        table["config"]["data"]["norm_prior"] = "inf"
        for row in table["runs"]:
            row["fold"] = "valid"

    comparison = report.Comparison(changed(valid))
    text = report._reading(comparison)
    assert "6 validation recordings" in text and "optimistic and only to be compared with one another" in text
    assert "normalised by the training fold alone" in text and "test recording" not in text and "transductive" not in text
    assert "validation fold" in comparison.source


def test_label_counts_are_ordered_by_the_labels_behind_them(changed):
    def shares(table):
        for row in table["runs"]:
            row["budget"] = {30: 0.5, 60: 60}.get(row["budget"], 0)
            row["num_labels"] = {0.5: 100, 60: 60}.get(row["budget"], 200)

    comparison = report.Comparison(changed(shares))
    assert comparison.budgets("", "pretrained", "scratch") == comparison.all_budgets("") == [60, 0.5, 0]


def test_a_comparison_without_a_finished_cell_has_no_report_yet(changed):
    def constants(table):
        table["runs"] = [row for row in table["runs"] if row["arm"] == "constant"]

    with pytest.raises(UserError, match="results.json has no finished cell yet: run its command again"):
        report.write(changed(constants))


@pytest.mark.parametrize(("name", "value"), [("classes", ["neutral", "sad", "happy"]), ("fold", "valid"), ("corpus", "nemo")])
def test_rotations_that_cannot_be_judged_together_are_refused(changed, name, value):
    def other(table):
        for row in table["runs"]:
            if row["folds"] == "b":
                row[name] = value

    with pytest.raises(UserError, match=f"results.json: the {name} of its rows differ, .* rotation 'b' .*: give each a --workdir"):
        report.write(changed(other))


def test_a_config_without_the_prior_is_refused(changed):
    with pytest.raises(UserError, match="results.json has no number as config.data.norm_prior: run the experiment anew"):
        report.write(changed(lambda table: table["config"].clear()))


@pytest.mark.parametrize(
    "arrays",
    [
        {"scores": np.zeros((90, 2))},
        {"scores": np.zeros(90)},
        {"scores": np.full((90, 3), "x")},
        {"target": np.zeros((90, 3))},
        {"target": np.zeros(90)},
        {"target": np.full(90, 3)},
        {"recordings": np.array("a0")},
        {"recordings": np.full(89, "a0")},
        {"scores": np.zeros((0, 3)), "target": np.zeros(0, int), "recordings": np.zeros(0, str)},
    ],
)
def test_predictions_that_do_not_fit_are_named(changed, arrays):
    out = changed(lambda table: None)
    name = report.Path("a-scratch-30-0")
    kept = results.load_arrays(out / "predictions" / f"{name}.npz")
    results.keep_predictions(out, name, **kept | arrays)
    with pytest.raises(UserError, match="a-scratch-30-0.npz does not fit results.json: run the experiment anew"):
        report.write(out)


def test_predictions_of_other_segments_are_named(changed):
    out = changed(lambda table: None)
    name = report.Path("b-scratch-30-0")
    kept = results.load_arrays(out / "predictions" / f"{name}.npz")
    results.keep_predictions(out, name, **kept | {"recordings": kept["recordings"][::-1]})
    with pytest.raises(UserError, match="b-scratch-30-0.npz is of other segments .*: the corpus has changed"):
        report.write(out)


def test_a_class_that_training_lacks_counts_as_missed(changed):
    out = changed(lambda table: None)
    for file in (out / "predictions").glob("a-*.npz"):
        kept = results.load_arrays(file)
        kept["target"][:10] = metrics.UNSEEN - 1
        results.keep_predictions(out, report.Path(file.stem), **kept)
    comparison = report.Comparison(out)
    expected = []
    for seed in (0, 1):
        both = [results.load_arrays(out / "predictions" / f"{rotation}-pretrained-30-{seed}.npz") for rotation in "ab"]
        scores, target = (np.concatenate([own[name] for own in both]) for name in ("scores", "target"))
        expected.append(metrics.category_report(scores, target, CLASSES)[0])
    for name in comparison.headline:
        assert comparison.estimate("", "pretrained", 30, name).value == pytest.approx(np.mean([own[name] for own in expected]))
    assert comparison.confusion("pretrained", 30).sum() == (180 - 10) * 2


def test_a_folder_that_cannot_be_written_is_one_sentence(changed, monkeypatch, capsys):
    out = changed(lambda table: None)
    (out / "tables").write_text("")
    monkeypatch.setattr(report.sys, "argv", ["report", str(out)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and f"error: {out / 'tables'} cannot be read or written" in capsys.readouterr().err


def test_results_of_another_task_have_no_report(finetuning):
    with pytest.raises(UserError, match="holds no comparison"):
        report.write(finetuning)


def test_damaged_predictions_are_named(folder, tmp_path):
    shutil.copytree(folder / "predictions", tmp_path / "predictions")
    shutil.copy(folder / "results.json", tmp_path)
    file = tmp_path / "predictions" / "a-scratch-30-0.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="a-scratch-30-0.npz is missing or damaged"):
        report.write(tmp_path)
