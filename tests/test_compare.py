import json

import numpy as np
import pytest

from jax_emossl import results
from jax_emossl.data import corpora
from jax_emossl.errors import UserError
from jax_emossl.tasks import compare, train


def test_every_cell_is_evaluated_on_the_test_fold_beside_the_constant(comparison):
    _, rows = comparison
    assert {row["fold"] for row in rows} == {"test"}
    cells = [(row["arm"], row["num_labels"], row["seed"]) for row in rows if row["arm"] != "constant"]
    assert sorted(cells) == [(arm, count, seed) for arm in ("pretrained", "scratch") for count in (12, 36) for seed in (0, 1)]
    assert all(row["selection"]["fold"] == "valid" for row in rows if row["arm"] != "constant")
    assert len([row for row in rows if row["arm"] == "constant"]) == 8


def test_the_comparison_is_printed_and_drawn(comparison_config, comparison, capsys):
    folder, _ = comparison
    compare.run(comparison_config, folder)
    out = capsys.readouterr().out
    lines = [line.split()[:2] for line in out.splitlines()]
    for arm in ("pretrained", "scratch", "difference"):
        assert [arm, "12"] in lines and [arm, "36"] in lines
    assert ["constant", "36"] in lines
    assert "SYNTHETIC" in out and "18 segments of 3 recordings" in out
    for name in ("auroc", "mae"):
        assert f"Figure: {folder / name}.png" in out
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_comparison_fills_in_the_missing_cells_only(comparison_config, comparison, tmp_path, monkeypatch):
    folder, rows = comparison
    (tmp_path / "pretrain").symlink_to(folder / "pretrain")
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    results.write(tmp_path / "results.json", rows[:-4], comparison_config)
    fitted = []
    fit = compare.fit
    monkeypatch.setattr(compare, "fit", lambda *a, **k: fitted.append(k["description"]) or fit(*a, **k))
    assert compare.run(comparison_config, tmp_path) == rows
    assert len(fitted) == 2


def test_both_arms_try_the_same_grid_and_validation_alone_chooses(comparison_config, comparison, tmp_path, monkeypatch):
    folder, _ = comparison
    (tmp_path / "pretrain").symlink_to(folder / "pretrain")
    monkeypatch.setattr(compare.workdir, "enter", lambda *_: None)
    tried, evaluated = {"pretrained": [], "scratch": []}, []

    def fit(objective, segments, valid, config, *, encoder, description, **_):
        assert set(valid.recordings) == set(first_corpus().fold("valid").recordings)
        arm = "scratch" if encoder is None else "pretrained"
        settings = config.to_dict() | {"init_from": ""}
        tried[arm].append(settings)
        value = {1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.2}[config.train.learning_rate]
        return compare.Fitted({"rate": config.train.learning_rate}, 1, value, None)

    def first_corpus():
        return corpora.load(comparison_config.data)

    def evaluate(experiment, fitted, fold, num_labels):
        evaluated.append((fitted.params["rate"], fold))
        return []

    config = comparison_config.copy_and_resolve_references()
    config.compare.learning_rates = (1e-3, 3e-3, 1e-2)
    monkeypatch.setattr(compare, "fit", fit)
    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(compare.report, "comparison_table", lambda *_: "")
    monkeypatch.setattr(compare.report, "learning_curve", lambda *_: "")
    compare.run(config, tmp_path)
    assert tried["pretrained"] == tried["scratch"] and len(tried["scratch"]) == 12
    assert evaluated == [(3e-3, "test")] * 8  # the highest validation AUROC


def test_more_labels_than_there_are_segments_are_refused_before_anything_is_trained(comparison_config, tmp_path):
    config = comparison_config.copy_and_resolve_references()
    config.compare.label_counts = (12, 37)
    with pytest.raises(UserError, match="compare.label_counts has 37, but the training fold has 36 labelled segments: lower it"):
        compare.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_pretraining_of_a_comparison_is_a_run_of_its_own(comparison):
    folder, _ = comparison
    table = results.read(folder / "pretrain" / "results.json")
    assert [row["arm"] for row in table["runs"]] == ["pretrain", "constant"] * 2
    assert np.isfinite([row["metrics"]["loss"] for row in table["runs"]]).all()
    assert json.loads((folder / "pretrain" / "config.json").read_text())["objective"]["name"] == "masked_timesteps"
