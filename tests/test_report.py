import numpy as np
import pytest

from jax_emossl import report


def row(arm, num_labels, seed, **metrics):
    return {"arm": arm, "num_labels": num_labels, "seed": seed, "fold": "test", "corpus": "demo", "synthetic": True, "metrics": metrics}


ROWS = [
    row("pretrained", 30, 0, auroc=0.7, mae=0.2),
    row("pretrained", 30, 1, auroc=0.8, mae=0.4),
    row("scratch", 30, 1, auroc=0.5, mae=0.4),
    row("scratch", 30, 0, auroc=0.6, mae=0.5),
    row("constant", 99, 0, auroc=0.5, mae=None),
    row("constant", 99, 1, auroc=0.5, mae=None),
]


def cells(text):
    return [line.split("  ") for line in text.splitlines()]


def test_the_table_holds_means_over_seeds_with_their_interval_and_the_paired_difference():
    lines = {
        tuple(c.strip() for c in line[:1]): [c.strip() for c in line if c.strip()]
        for line in cells(report.comparison_table(ROWS, ["auroc", "mae"]))
    }
    half = 12.706 * 0.1 / np.sqrt(2) / np.sqrt(2)  # t(0.975, 1) x deviation / sqrt(seeds)
    assert lines[("pretrained",)] == ["pretrained", "30", f"0.750 ±{half:.3f}", f"0.300 ±{2 * half:.3f}"]
    assert lines[("scratch",)][2] == f"0.550 ±{half:.3f}"
    difference = [line for line in cells(report.comparison_table(ROWS, ["auroc", "mae"])) if "difference" in line][0]
    assert [c.strip() for c in difference if c.strip()] == ["difference", "30", "0.200 ±1.271", "-0.150 ±1.906"]
    assert lines[("constant",)] == ["constant", "99", "0.500", "-"]


def test_the_table_says_fold_and_seeds():
    assert "test fold; mean over seeds 0, 1" in report.comparison_table(ROWS, ["auroc"])


def test_one_seed_has_no_interval():
    assert np.isnan(report.interval(np.array([0.5])))
    assert "±" not in report.comparison_table([r for r in ROWS if r["seed"] == 0], ["auroc"]).splitlines()[1]


@pytest.mark.parametrize(("metrics", "shown"), [({"uar": 0.5}, "uar"), ({"mae": 0.5}, "auroc")])
def test_the_shown_metrics_are_those_of_the_head(metrics, shown):
    assert report.table_metrics([row("scratch", 30, 0, **metrics)])[0] == shown


def test_the_figure_is_drawn_where_it_says(tmp_path):
    path = report.learning_curve(ROWS, "auroc", tmp_path / "auroc.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert report.learning_curve(ROWS, "mae", tmp_path / "mae.png").exists()  # with an undefined constant
