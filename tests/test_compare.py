import csv
import dataclasses
import json
import re
import types

import jax
import numpy as np
import pytest
from tqdm import tqdm

from jax_emossl import checkpoint, mesh, preemption, results, tuned
from jax_emossl.data import corpora
from jax_emossl.errors import UserError
from jax_emossl.loop import Fitted
from jax_emossl.metrics import four_class
from jax_emossl.study import num_labels
from jax_emossl.tasks import compare

ARMS = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")
CALIBRATION = {"threshold": [0.5] * 6, "scale": [1.0] * 6}


@pytest.fixture
def pretrained_there(comparison, tmp_path):
    """A workdir in which only the pretraining of the comparison is done."""
    (tmp_path / "pretrain").symlink_to(comparison[0] / "pretrain")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "illustration.npz").symlink_to(comparison[0] / "predictions" / "illustration.npz")
    return tmp_path


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(compare.report, "write", lambda _: "")


def test_every_cell_is_evaluated_on_the_test_fold_beside_one_constant(comparison):
    _, rows = comparison
    assert {row["fold"] for row in rows} == {"test"}
    cells = [(row["arm"], row["num_labels"], row["budget"], row["seed"]) for row in rows if row["arm"] != "constant"]
    assert sorted(cells) == sorted((arm, count, budget, seed) for arm in ARMS for count, budget in ((12, 12), (36, 0)) for seed in (0, 1))
    assert all(row["selection"]["fold"] == "valid" for row in rows if row["arm"] != "constant")
    assert len([row for row in rows if row["arm"] == "constant"]) == 1


def test_predictions_are_kept_and_give_the_metrics_of_their_row(comparison, demo_corpus):
    folder, rows = comparison
    for row in rows:
        if row["arm"] != "constant":
            kept = results.load_arrays(folder / row["predictions"])
            assert row["metrics"]["mae"] == pytest.approx(np.abs(kept["median"] - kept["target"]).mean(), rel=1e-5)
            assert row["metrics"]["accuracy4"] == pytest.approx((kept["four_class"] == four_class(kept["target"])).mean())
            assert kept["recordings"].tolist() == demo_corpus.fold("test").recordings


def test_a_finished_comparison_prints_and_writes_its_report_again(comparison_config, comparison, capsys):
    folder, _ = comparison
    for name in ("report.md", "report.html", "tables/auroc.csv", "figures/learning_curve_auroc.pdf"):
        (folder / name).unlink()
    compare.run(comparison_config, folder)
    out = capsys.readouterr().out
    assert "SYNTHETIC" in out and "18 segments of 3 recordings" in out
    assert re.search(r"^pretrained +0\.\d+ \[", out, re.M) and re.search(r"^constant +0\.500", out, re.M)
    for name in ("report.md", "report.html", "tables/auroc.csv", "figures/learning_curve_auroc.pdf"):
        assert (folder / name).stat().st_size > 0
    header, *body = csv.reader((folder / "tables" / "auroc.csv").open())
    assert header == ["arm", "12", "all (36)"] and {row[0] for row in body} == {*ARMS, "constant"}


def test_an_interrupted_comparison_fills_in_the_missing_cells_only(comparison_config, comparison, pretrained_there, no_report, monkeypatch):
    _, rows = comparison
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    results.write(pretrained_there / "results.json", rows[:-3], comparison_config)
    sweeps, fit = [], tuned.fit
    monkeypatch.setattr(tuned, "fit", lambda o, members, *a, **k: sweeps.append(len(members)) or fit(o, members, *a, **k))
    again = compare.run(comparison_config, pretrained_there)
    assert sweeps == [3] and not list(pretrained_there.glob("in_progress/*"))
    for one, other in zip(again, rows, strict=True):
        assert {k: one[k] for k in one if k not in ("metrics", "selection")} == {
            k: other[k] for k in other if k not in ("metrics", "selection")
        }
        assert one["metrics"]["mae"] == pytest.approx(other["metrics"]["mae"], rel=1e-4)


def test_the_progress_bar_goes_by_what_is_trained_on_and_knows_what_is_done(
    comparison_config, comparison, pretrained_there, no_report, monkeypatch
):
    folder, rows = comparison
    bars, halfway = [], []

    def fit(_, members, *rest, advance, **named):
        advance(0.5)
        halfway.append(bars[-1].n)
        return [Fitted(None, None, None, None, "it diverged")] * len(members)

    monkeypatch.setattr(compare, "tqdm", lambda **own: bars.append(tqdm(**own | {"disable": False})) or bars[-1])
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    monkeypatch.setattr(tuned, "fit", fit)
    results.write(
        pretrained_there / "results.json", [row for row in rows if row["arm"] not in ("pretrained", "scratch")], comparison_config
    )
    compare.run(comparison_config, pretrained_there)
    compare.run(comparison_config, folder)
    part, everything = bars
    assert part.n == part.total == everything.total == everything.initial
    assert 0 < part.initial < part.total
    first, last = halfway  # of the trainings of either label count
    assert part.initial < first < last < part.total
    assert first - part.initial == pytest.approx(2 * last - part.total - first, abs=2)


def test_a_comparison_stopped_within_a_sweep_ends_the_same(comparison_config, comparison, pretrained_there, no_report, monkeypatch):
    _, rows = comparison
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    tuned = [row["arm"] in ("pretrained", "scratch") for row in rows]
    results.write(pretrained_there / "results.json", [row for row, own in zip(rows, tuned, strict=True) if not own], comparison_config)
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "requested", lambda: True)
        with pytest.raises(preemption.Preempted):
            compare.run(comparison_config, pretrained_there)
    assert list(pretrained_there.glob("in_progress/*/checkpoints/1"))
    assert compare.run(comparison_config, pretrained_there)[-8:] == [row for row, own in zip(rows, tuned, strict=True) if own]


@pytest.fixture
def grid_config(comparison_config):
    """Both tuned arms with one strategy and three learning rates."""
    config = comparison_config.copy_and_resolve_references()
    config.compare.learning_rates, config.compare.arms = (1e-3, 3e-3, 1e-2), ("pretrained", "scratch")
    config.compare.strategies = ("probe-then-full",)
    return config


def test_both_arms_try_the_same_grid_and_validation_alone_chooses(grid_config, pretrained_there, no_report, monkeypatch):
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    tried, predicted = {True: [], False: []}, []
    corpus = corpora.load(grid_config.data)
    encoder = checkpoint.load_best(pretrained_there / "pretrain").variables["params"]["encoder"]

    def fit(objective, members, config, **_):
        settings = {name: value for name, value in config.train.items() if name not in ("strategy", "learning_rate")}  # members' own
        for member in members:
            assert set(member.valid.recordings) == set(corpus.fold("valid").recordings)
            assert {*member.train.recordings, *member.reference.recordings} <= set(corpus.fold("train").recordings)
            pretrained = jax.tree.all(jax.tree.map(np.array_equal, member.params["encoder"], encoder))
            rates = {name: float(value) for name, value in vars(member.rates).items()}
            tried[pretrained].append((settings, member.seed, member.crop, rates, member.train.positions.tolist()))
        values = {1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.2}
        rates = [round(float(member.rates.learning_rate), 6) for member in members]
        said = [{"scores": np.zeros((len(member.valid), 6), np.float32)} for member in members]
        return [Fitted({"rate": rate}, 1, values[rate], CALIBRATION, "", outputs=own) for rate, own in zip(rates, said, strict=True)]

    def predict(objective, variables, segments, *_, **__):
        predicted.extend((own["rate"], *map(str, sorted(set(part.recordings)))) for own, part in zip(variables, segments, strict=True))
        return [{"scores": np.zeros((len(part), 6), np.float32)} for part in segments]

    monkeypatch.setattr(tuned, "fit", fit)
    monkeypatch.setattr(tuned, "predict", predict)
    rows = compare.run(grid_config, pretrained_there)
    assert tried[True] == tried[False] and len(tried[True]) == 12
    asked = [(rate, *sorted(set(corpus.fold("test").recordings))) for rate in (1e-3, 3e-3, 1e-2)]
    assert sorted(predicted) == sorted(asked * 8)
    assert {row["selection"]["learning_rate"] for row in rows if row["arm"] != "constant"} == {3e-3}


def test_a_training_that_diverges_is_told_and_no_choice_unless_all_do(grid_config, pretrained_there, no_report, monkeypatch, capsys):
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    monkeypatch.setattr(tuned, "predict", lambda _, v, segments, *a, **k: [{"scores": np.zeros((len(part), 6))} for part in segments])
    broken = Fitted(None, None, None, None, "the loss of step 1 is not finite")

    def fit(lost):
        def one(member):
            if round(float(member.rates.learning_rate), 6) in lost:
                return broken
            return Fitted({"params": {}}, 1, 0.5, CALIBRATION, "", outputs={"scores": np.zeros((len(member.valid), 6))})

        return lambda objective, members, config, **_: [one(member) for member in members]

    monkeypatch.setattr(tuned, "fit", fit((1e-3, 1e-2)))
    rows = compare.run(grid_config, pretrained_there)
    assert {row["selection"]["learning_rate"] for row in rows if row["arm"] != "constant"} == {3e-3}
    assert "the loss of step 1 is not finite in one of its trainings; its best step so far stands" in capsys.readouterr().err
    (pretrained_there / results.RESULTS_FILE).unlink()
    monkeypatch.setattr(tuned, "fit", fit((1e-3, 3e-3, 1e-2)))
    with pytest.raises(UserError, match="Every training of pretrained with all labels diverged: lower compare.learning_rates"):
        compare.run(grid_config, pretrained_there)


def assert_same_metrics(one, other):
    """But for rounding: the same labels in another order."""
    for name in ("auroc", "mae", "balanced_accuracy"):
        assert one["metrics"][name] == pytest.approx(other["metrics"][name], rel=1e-4)


def test_the_linear_strategy_is_one_of_those_that_are_averaged(comparison):
    _, rows = comparison
    values = {(r["arm"], r["num_labels"], r["seed"]): r for r in rows}
    for linear, tuned_arm in (("frozen", "pretrained"), ("random", "scratch")):
        for count, seed in ((12, 0), (12, 1), (36, 0), (36, 1)):
            fixed, own = values[linear, count, seed], values[tuned_arm, count, seed]
            assert fixed["selection"]["strategy"] == "linear" and own["selection"]["strategy"] in ("linear", "probe-then-full")
            assert own["selection"]["averaged"] in (1, 2)
            if own["selection"]["strategy"] == "linear":
                assert own["step"] is None
                if own["selection"]["averaged"] == 1:
                    assert_same_metrics(own, fixed)


def test_with_the_linear_strategy_alone_nothing_is_trained(comparison_config, comparison, pretrained_there, no_report, monkeypatch):
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    monkeypatch.setattr(tuned, "fit", None)
    config = comparison_config.copy_and_resolve_references()
    config.compare.update({"strategies": ("linear",), "arms": ("pretrained", "frozen", "scratch", "random"), "seeds": 1})
    rows = {(row["arm"], row["budget"], row["seed"]): row for row in compare.run(config, pretrained_there)}
    for linear, tuned_arm in (("frozen", "pretrained"), ("random", "scratch")):
        for budget, seed in ((12, 0), (0, 0)):
            assert_same_metrics(rows[linear, budget, seed], rows[tuned_arm, budget, seed])


def test_label_counts_beyond_the_fold_are_left_out_with_a_notice(comparison_config, capsys):
    def budgets(*counts):
        config.compare.label_counts = counts
        return {cell.budget for cell in compare._cells(config, "", 36) if cell.arm != "constant"}

    config = comparison_config.copy_and_resolve_references()
    assert budgets(12, 0.5, 36, 37, 0) == {12, 0.5, 0} and num_labels(0.5, 36) == 18
    assert num_labels(0.001, 36) == 1  # a share of all, never all
    err = capsys.readouterr().err
    assert "has 36 labelled segments: the label count 37 is left out" in err
    assert "has 36 labelled segments: the label count 36, which is what 0 asks for, is left out" in err
    assert budgets(36) == {36}
    with pytest.raises(UserError, match="Every one of compare.label_counts is beyond the 36 labelled segments"):
        budgets(37)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_counts": (37, 1000)}, "Every one of compare.label_counts is beyond the 36 labelled segments"),
        ({"label_counts": (12, 1), "validation": "budget"}, "compare.validation is budget, but the 1 labels are of one recording"),
        ({"label_counts": (12, 2), "validation": "budget"}, r"the 1 of 2 labels that validate \(seed 0\) do not define auroc"),
        ({"variants": (("x", (("data.nonsense", 1),)),)}, "'x' sets data.nonsense, which is no field"),
        ({"variants": (("x", (("data.clip", "wide"),)),)}, "'x' sets data.clip, which is no field or not of this type"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_anything_is_trained(comparison_config, tmp_path, fields, message):
    config = comparison_config.copy_and_resolve_references()
    config.compare.update(fields)
    with pytest.raises(UserError, match=message):
        compare.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_validation_fold_that_defines_no_score_is_refused_before_anything_is_trained(
    comparison_config, demo_corpus, tmp_path, monkeypatch
):
    valid = dataclasses.replace(demo_corpus.folds["valid"], labels=np.zeros_like(demo_corpus.folds["valid"].labels))
    changed = dataclasses.replace(demo_corpus, folds={**demo_corpus.folds, "valid": valid})
    monkeypatch.setattr(corpora, "load", lambda _: changed)
    with pytest.raises(UserError, match="The validation fold of demo does not define auroc: choose another finetune.objective.selection"):
        compare.run(comparison_config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rotations_that_report_the_same_recordings_are_refused_before_anything_is_trained(comparison_config, demo_files, tmp_path):
    config = comparison_config.copy_and_resolve_references()
    (tmp_path / "again.json").write_text((demo_files / "folds.json").read_text())
    config.data.prepared, config.data.corpus = "", "demo"
    config.data.features, config.data.labels = (str(demo_files / f"DEMO_{name}.csd") for name in ("COVAREP", "Labels"))
    config.data.folds = f"{demo_files / 'folds.json'},{tmp_path / 'again.json'}"
    with pytest.raises(
        UserError, match="data.folds: the rotations 'folds' and 'again' both test the recording '.*', which may be tested once"
    ):
        compare.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rotations_and_variants_are_pretrained_and_compared_apart(comparison_config, demo_files, tmp_path, no_report):
    config = comparison_config.copy_and_resolve_references()
    folds = json.loads((demo_files / "folds.json").read_text())
    for name, (train, test) in (("a", ("train", "test")), ("b", ("test", "train"))):
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": folds[train], "valid": folds["valid"], "test": folds[test]}))
    config.data.prepared, config.data.corpus = "", "demo"
    config.data.features, config.data.labels = (str(demo_files / f"DEMO_{name}.csd") for name in ("COVAREP", "Labels"))
    config.data.folds = f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}"
    config.compare.update({"arms": ("frozen",), "label_counts": (12,), "seeds": 2})
    own = ("own", (("data.norm_prior", 0.0),))
    config.compare.variants = (own, ("alike", own[1]), ("short", (("pretrain.train.steps", 2), ("compare.seeds", 1))))
    rows = compare.run(config, tmp_path / "out")
    made = [(row["variant"], row["folds"], row["arm"], row["seed"]) for row in rows]
    expected = [("own", 0), ("own", 1), ("alike", 0), ("alike", 1), ("short", 0)]
    assert sorted(m for m in made if m[2] == "frozen") == sorted((v, f, "frozen", s) for v, s in expected for f in ("a", "b"))
    assert sum(m[2] == "constant" for m in made) == 6
    assert not (tmp_path / "out" / "pretrain" / "alike").exists()  # it shares its encoder with the one before it
    for variant in ("short", "own"):
        for rotation in ("a", "b"):
            pretraining = tmp_path / "out" / "pretrain" / variant / rotation
            assert json.loads((pretraining / "config.json").read_text())["train"]["steps"] == (2 if variant == "short" else 6)
            assert set(json.loads((pretraining / "card.json").read_text())["recordings"]) == set(
                folds["train" if rotation == "a" else "test"]
            )


@pytest.mark.parametrize(("changes", "refused"), [({"pretrain": 33}, True), ({"finetune": 33}, True), ({"finetune": 32}, False)])
def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_trained(
    changes, refused, comparison_config, tmp_path, monkeypatch
):
    def trained(*_):
        raise RuntimeError("it trains")

    config = comparison_config.copy_and_resolve_references()
    config.compare.update({"arms": ("pretrained",), "label_counts": (12,), "seeds": 1})
    odd = tuple((f"{group}.train.batch_size", size) for group, size in changes.items())
    config.compare.variants = (("", ()), ("odd", odd))
    monkeypatch.setattr(mesh, "make", lambda members: types.SimpleNamespace(shape={"members": 1, "data": 2}))
    monkeypatch.setattr(compare.train, "run", trained)
    error, message = (UserError, "33, but must be a positive multiple of the 2") if refused else (RuntimeError, "it trains")
    with pytest.raises(error, match=message):
        compare.run(config, tmp_path / "out")


def test_a_label_count_that_one_rotation_lacks_is_left_out_of_all(comparison_config, demo_files, tmp_path, no_report, capsys):
    config = comparison_config.copy_and_resolve_references()
    folds = json.loads((demo_files / "folds.json").read_text())
    few = {"train": folds["test"], "valid": folds["valid"], "test": folds["train"]}
    for name, own in (("a", folds), ("b", few)):
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    config.data.prepared, config.data.corpus = "", "demo"
    config.data.features, config.data.labels = (str(demo_files / f"DEMO_{name}.csd") for name in ("COVAREP", "Labels"))
    config.data.folds = f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}"
    config.compare.update({"arms": ("functionals",), "label_counts": (12, 30), "seeds": 1})
    rows = compare.run(config, tmp_path)
    assert {(row["folds"], row["budget"]) for row in rows if row["arm"] != "constant"} == {("a", 12), ("b", 12)}
    assert "the label count 30 is left out, since another rotation has fewer segments" in capsys.readouterr().err


def test_the_pretraining_of_a_comparison_is_a_run_of_its_own(comparison):
    folder, _ = comparison
    table = results.read(folder / "pretrain" / "results.json")
    assert [row["arm"] for row in table["runs"]] == ["pretrain", "constant"] * 2
    assert np.isfinite([row["metrics"]["loss"] for row in table["runs"]]).all()
    assert json.loads((folder / "pretrain" / "config.json").read_text())["objective"]["name"] == "masked_timesteps"


def test_a_budget_may_hold_its_own_validation(comparison_config, comparison, pretrained_there, no_report, monkeypatch, demo_corpus):
    """The validation fold's labels are then not looked at: with others, every row is the same."""
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    config = comparison_config.copy_and_resolve_references()
    config.compare.update({"validation": "budget", "arms": ("frozen", "scratch"), "label_counts": (0,), "seeds": 2})
    rows = compare.run(config, pretrained_there)
    assert {row["selection"]["fold"] for row in rows if row["arm"] != "constant"} == {"train"}
    assert {row["num_labels"] for row in rows} == {36}
    (pretrained_there / results.RESULTS_FILE).unlink()
    valid = demo_corpus.folds["valid"]
    other = dataclasses.replace(valid, labels=valid.labels[::-1].copy())
    changed = dataclasses.replace(demo_corpus, folds={**demo_corpus.folds, "valid": other})
    monkeypatch.setattr(corpora, "load", lambda _: changed)
    assert [row["metrics"] for row in compare.run(config, pretrained_there)] == [row["metrics"] for row in rows]
    assert [row["metrics"] for row in comparison[1] if row["arm"] == "frozen" and row["budget"] == 0] != [
        row["metrics"] for row in rows if row["arm"] == "frozen"
    ]
