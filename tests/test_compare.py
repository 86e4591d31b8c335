import csv
import json
import re

import numpy as np
import pytest
from jax_emossl.train import Fitted

from jax_emossl import preemption, results
from jax_emossl.data import corpora
from jax_emossl.errors import UserError
from jax_emossl.tasks import compare

ARMS = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")


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
            mae = np.abs(np.clip(kept["scores"], 0, 3) - kept["target"]).mean()
            assert row["metrics"]["mae"] == pytest.approx(mae, rel=1e-5)
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
    sweeps = []
    fit_members = compare.sweep.fit_members
    monkeypatch.setattr(compare.sweep, "fit_members", lambda o, m, **k: sweeps.append(len(m)) or fit_members(o, m, **k))
    again = compare.run(comparison_config, pretrained_there)
    assert sweeps == [3] and not list(pretrained_there.glob("in_progress/*"))
    for one, other in zip(again, rows, strict=True):
        assert {k: one[k] for k in one if k not in ("metrics", "selection")} == {
            k: other[k] for k in other if k not in ("metrics", "selection")
        }
        assert one["metrics"]["mae"] == pytest.approx(other["metrics"]["mae"], rel=1e-4)


def test_a_comparison_stopped_within_a_sweep_ends_the_same(comparison_config, comparison, pretrained_there, no_report, monkeypatch):
    _, rows = comparison
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    tuned = [row["arm"] in ("pretrained", "scratch") for row in rows]
    results.write(pretrained_there / "results.json", [row for row, own in zip(rows, tuned, strict=True) if not own], comparison_config)
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "requested", lambda: True)
        with pytest.raises(preemption.Preempted):
            compare.run(comparison_config, pretrained_there)
    assert list(pretrained_there.glob("in_progress/*/checkpoints/2"))
    assert compare.run(comparison_config, pretrained_there)[-8:] == [row for row, own in zip(rows, tuned, strict=True) if own]


def test_both_arms_try_the_same_grid_and_validation_alone_chooses(comparison_config, pretrained_there, no_report, monkeypatch):
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    tried, reported = {True: [], False: []}, []
    corpus = corpora.load(comparison_config.data)

    def fit_members(objective, members, **_):
        for member in members:
            assert set(member.valid.recordings) == set(corpus.fold("valid").recordings)
            assert set(member.train.recordings) <= set(corpus.fold("train").recordings)
            tried[member.encoder is not None].append((member.config.to_dict(), member.train.positions.tolist()))
        values = {1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.2}
        return [Fitted({"rate": m.config.train.learning_rate}, 1, values[m.config.train.learning_rate], [0.5] * 6) for m in members]

    def predict_members(objective, params, segments, *_):
        reported.extend((own["rate"], set(part.recordings)) for own, part in zip(params, segments, strict=True))
        return [{"scores": np.zeros((len(part), 6), np.float32)} for part in segments]

    config = comparison_config.copy_and_resolve_references()
    config.compare.learning_rates, config.compare.arms = (1e-3, 3e-3, 1e-2), ("pretrained", "scratch")
    config.compare.strategies = ("probe-then-full",)
    monkeypatch.setattr(compare.sweep, "fit_members", fit_members)
    monkeypatch.setattr(compare.sweep, "predict_members", predict_members)
    rows = compare.run(config, pretrained_there)
    assert tried[True] == tried[False] and len(tried[True]) == 12
    assert reported == [(3e-3, set(corpus.fold("test").recordings))] * 8  # the highest validation AUROC
    assert {row["selection"]["learning_rate"] for row in rows if row["arm"] != "constant"} == {3e-3}


def test_the_frozen_strategy_is_taken_where_validation_prefers_it(comparison):
    _, rows = comparison
    values = {(r["arm"], r["num_labels"], r["seed"]): r for r in rows}
    for linear, tuned in (("frozen", "pretrained"), ("random", "scratch")):
        for count, seed in ((12, 0), (12, 1), (36, 0), (36, 1)):
            probe, own = values[linear, count, seed], values[tuned, count, seed]
            assert own["selection"]["value"] >= probe["selection"]["value"]
            if own["selection"]["strategy"] == "frozen":
                assert own["metrics"] == probe["metrics"]


def test_label_counts_beyond_the_fold_are_left_out_with_a_notice(comparison_config, comparison, capsys):
    folder, _ = comparison
    config = comparison_config.copy_and_resolve_references()
    config.compare.label_counts = (12, 0.5, 36, 37, 0)
    study = compare._Study(config, folder, "", "", False)
    assert {cell.budget for cell in study.cells()} == {12, 0.5, 0} and study._num_labels(0.5) == 18
    assert study._num_labels(0.001) == 1  # a share of all, never all
    assert "has 36 labelled segments: the label count 37 is left out" in capsys.readouterr().err
    config.compare.label_counts = (36,)
    assert {cell.budget for cell in study.cells()} == {0, 36}  # 0 is the constant's
    config.compare.label_counts = (37,)
    with pytest.raises(UserError, match="Every one of compare.label_counts is beyond the 36 labelled segments"):
        study.cells()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("arms", (), "must name at least one each"),
        ("arms", ("untrained",), "compare.arms is 'untrained': choose one of pretrained"),
        ("strategies", ("half",), "compare.strategies is 'half'"),
        ("label_counts", (-1,), "give counts, fractions of the fold, or 0"),
        ("fold", "train", "compare.fold is 'train'"),
        ("variants", (("x", ()), ("x", ())), "compare.variants has the name 'x' twice"),
        ("variants", (("w/o norm", ()),), "compare.variants has the name 'w/o norm': folders are named after it"),
        ("variants", (("x", (("data.nonsense", 1),)),), "'x' sets data.nonsense, which is no field"),
        ("variants", (("x", (("data.clip", "wide"),)),), "'x' sets data.clip, which is no field or not of this type"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_anything_is_trained(comparison_config, tmp_path, field, value, message):
    config = comparison_config.copy_and_resolve_references()
    config.compare[field] = value
    with pytest.raises(UserError, match=message):
        compare.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rotations_and_variants_are_pretrained_and_compared_apart(comparison_config, demo_files, tmp_path, no_report):
    config = comparison_config.copy_and_resolve_references()
    folds = json.loads((demo_files / "folds.json").read_text())
    for name, (train, test) in (("a", ("train", "test")), ("b", ("test", "train"))):
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": folds[train], "valid": folds["valid"], "test": folds[test]}))
    config.data.prepared, config.data.corpus = "", "demo"
    config.data.features, config.data.labels = (str(demo_files / f"DEMO_{name}.csd") for name in ("COVAREP", "Labels"))
    config.data.folds = f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}"
    config.compare.update({"arms": ("frozen",), "label_counts": (12,), "seeds": 1})
    config.compare.variants = (("short", (("pretrain.train.steps", 2),)), ("own", (("data.norm_prior", 0.0), ("compare.seeds", 2))))
    rows = compare.run(config, tmp_path / "out")
    made = [(row["variant"], row["folds"], row["arm"], row["seed"]) for row in rows]
    expected = [("short", 0), ("own", 0), ("own", 1)]
    assert sorted(m for m in made if m[2] == "frozen") == sorted((v, f, "frozen", s) for v, s in expected for f in ("a", "b"))
    assert sum(m[2] == "constant" for m in made) == 4
    for variant in ("short", "own"):
        for rotation in ("a", "b"):
            pretraining = tmp_path / "out" / "pretrain" / variant / rotation
            assert json.loads((pretraining / "config.json").read_text())["train"]["steps"] == (2 if variant == "short" else 6)
            assert set(json.loads((pretraining / "encoder.json").read_text())["recordings"]) == set(
                folds["train" if rotation == "a" else "test"]
            )


def test_the_pretraining_of_a_comparison_is_a_run_of_its_own(comparison):
    folder, _ = comparison
    table = results.read(folder / "pretrain" / "results.json")
    assert [row["arm"] for row in table["runs"]] == ["pretrain", "constant"] * 2
    assert np.isfinite([row["metrics"]["loss"] for row in table["runs"]]).all()
    assert json.loads((folder / "pretrain" / "config.json").read_text())["objective"]["name"] == "masked_timesteps"
