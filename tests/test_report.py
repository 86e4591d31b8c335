import csv
import functools
import re
import shutil
from pathlib import Path

import make_comparison
import numpy as np
import pandas as pd
import pytest

from jax_emossl import figures, readme, report, results
from jax_emossl.comparison import Comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_comparison.write(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def written(folder):
    return report.write(folder)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the made-up comparison whose results.json `change(table)` has altered."""
    return functools.partial(make_comparison.copy, folder, tmp_path)


def test_every_table_is_there_in_three_forms_and_every_figure_in_two(folder, written):
    page = (folder / "report.md").read_text()
    for name in ("uar", "f1_macro", "accuracy", "difference_scratch", "labels_needed_scratch", "per_emotion", "choices"):
        csv_, tex = (folder / "tables" / f"{name}{end}" for end in (".csv", ".tex"))
        assert csv_.stat().st_size and "\\toprule" in tex.read_text() and "jax_emossl 9.9" in tex.read_text()
        rows = list(csv.reader(csv_.open()))
        for line in re.findall(r"^.*\\\\$", tex.read_text(), re.M):
            assert len(re.findall(r"(?<!\\)&", line)) == len(rows[0]) - 1
        for row in rows:
            assert re.search(r"\| " + r" +\| +".join(map(re.escape, row)) + r" +\|", page)
    for name in ("learning_curve_uar", "validation", "gains_per_emotion", "confusion_60", "confusion_all"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"(figures/{name}.png)" in page
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_report_says_what_its_intervals_rest_on(changed):
    out = changed(lambda table: [row.update(unit="speaker") for row in table["runs"]])
    report.write(out)
    text = " ".join((out / "report.md").read_text().split())
    assert "replicates over the 8 test speakers, then" in text and "two arms change places in random speakers" in text
    assert "normalised with each speaker's own frames and segments" in text and "recording" not in text
    assert readme.summarised(Comparison(out))["unit"] == "speaker"


def test_the_report_names_corpus_seeds_command_and_version_and_marks_synthetic_data(folder, written):
    words = ("demo (SYNTHETIC)", "seeds 0, 1", "--config=x.py", "jax_emossl 9.9", "2 rotations", "8 test recordings", "(transductive)")
    for name in ("report.md", "report.html"):
        assert all(word in (folder / name).read_text() for word in words)


def test_the_page_holds_its_tables_and_figures_within_itself(folder, written):
    page = (folder / "report.html").read_text()
    assert "http" not in page and 'src="figures' not in page
    assert page.count("data:image/png;base64,iVBOR") == len(list((folder / "figures").glob("*.png"))) == 7
    assert page.count("<table>") == len(list((folder / "tables").glob("*.csv"))) == 7


def test_tables_hold_estimates_with_intervals_and_the_constant(folder, written):
    rows = dict(line.split(",", 1) for line in (folder / "tables" / "uar.csv").read_text().splitlines())
    assert set(rows) == {"arm", "pretrained", "scratch", "constant"} and rows["arm"] == "30,60,all (200)"
    e = Comparison(folder).estimate("", "pretrained", 30, "uar")
    assert f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" in rows["pretrained"] and e.low < e.value < e.high
    assert "0.333" in rows["constant"]
    assert "p = 0.008" in (folder / "tables" / "difference_scratch.csv").read_text()  # 2 / 2^8, the smallest there is
    assert (folder / "tables" / "choices.csv").read_text().splitlines()[:2] == ['arm,labels,"full, rate 0.001"', "pretrained,30,4"]


def test_labels_needed_have_an_interval_or_are_left_out(folder, written, changed, undrawn):
    needed = list(csv.reader((folder / "tables" / "labels_needed_scratch.csv").open()))
    assert needed[-1] == ["all (200)", *["> 200 [> 200, > 200]"] * 3]  # far better than scratch ever is

    def flat(table):
        for row in table["runs"]:
            if row["arm"] == "scratch":
                row["predictions"] = row["predictions"].replace("-60-", "-30-").replace("-0-", "-30-")

    out = changed(flat)
    report.write(out)
    assert "difference_scratch" in {file.stem for file in (out / "tables").iterdir()}
    assert not (out / "tables" / "labels_needed_scratch.csv").exists() and "How many labels" not in (out / "report.md").read_text()


def test_the_report_is_made_from_its_folder_alone_and_remade_the_same(folder, written, tmp_path):
    shutil.copytree(folder / "predictions", tmp_path / "predictions")
    shutil.copy(folder / "results.json", tmp_path)
    report.write(tmp_path)
    for name in ("report.md", "tables/uar.tex", "figures/learning_curve_uar.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time."""
    for name in ("learning_curve", "validation", "gains_per_emotion", "confusions", "reconstructions", "embedding_map", "save"):
        monkeypatch.setattr(report.figures, name, lambda *_: b"")


def test_a_comparison_under_way_has_a_report_too(changed):
    def under_way(table):
        table["runs"] = [r for r in table["runs"] if r["arm"] != "scratch" or (r["folds"], r["seed"]) != ("b", 1)][:-2]

    assert "pretrained" in report.write(changed(under_way))


def test_one_arm_has_a_report_too(changed, undrawn):
    def alone(table):
        table["runs"] = [row for row in table["runs"] if row["arm"] != "scratch"]

    out = changed(alone)
    assert "pretrained" in report.write(out) and "scratch" not in (out / "report.md").read_text()


def test_the_command_line_shows_scores_and_differences(changed, undrawn, monkeypatch, capsys):
    out = changed(lambda table: None)
    monkeypatch.setattr("sys.argv", ["report", str(out)])
    report.main()
    shown = capsys.readouterr().out
    assert shown.startswith("arm  ") and "pretrained less scratch: difference" in shown and f"Report: {out}" in shown


def test_variants_have_their_scores_and_differences(changed, undrawn):
    def variants(table):
        table["runs"] += [row | {"variant": "longer, twice"} for row in table["runs"]]

    out = changed(variants)
    report.write(out)
    assert "## Variant: longer, twice" in (out / "report.md").read_text()
    for name in ("uar", "difference_scratch"):
        assert (out / "tables" / f"{name}_longer_twice.csv").read_text() == (out / "tables" / f"{name}.csv").read_text()


def test_variants_stand_beside_the_first_where_they_score_the_same_segments(changed, undrawn):
    def variants(table):
        for name, take in (("swapped", {"pretrained": "scratch", "scratch": "pretrained"}), ("same", {}), ("elsewhere", {})):
            by_cell = {(r["arm"], r["folds"], r["budget"], r["seed"]): r for r in table["runs"] if r["variant"] == ""}
            for arm, *cell in by_cell:
                table["runs"].append(by_cell[take.get(arm, arm), *cell] | {"arm": arm, "variant": name})
        for row in table["runs"]:
            if row["variant"] == "elsewhere" and row["folds"] == "b":
                row |= {"folds": "c"}

    out = changed(variants)
    report.write(out)
    beside = pd.read_csv(out / "tables" / "variants.csv")
    own = pd.read_csv(out / "tables" / "difference_scratch.csv")["unweighted average recall"].tolist()
    assert beside["variant: arm"].tolist() == ["swapped: pretrained", "swapped: scratch"]
    assert beside.iloc[1, 1:].tolist() == own
    assert beside.iloc[0, 1].startswith("-") and "Every variant less the first" in (out / "report.md").read_text()


def test_a_report_of_the_validation_fold_says_so(changed, undrawn):
    def valid(table):
        table["config"]["data"]["norm_prior"] = "inf"
        for row in table["runs"]:
            row["fold"] = "valid"

    out = changed(valid)
    report.write(out)
    text = " ".join((out / "report.md").read_text().split())
    assert "8 validation recordings" in text and "optimistic and only to be compared with one another" in text
    assert "normalised by the training fold alone" in text and "test recording" not in text and "transductive" not in text
    assert "demo (SYNTHETIC), validation fold" in text and "read functionals of the whole segment" not in text


def test_a_fold_that_chose_nothing_is_not_called_optimistic(changed, undrawn):
    def within(table):
        for row in table["runs"]:
            row["fold"] = "valid"
            if row["selection"]:
                row["selection"]["fold"] = "train"

    out = changed(within)
    report.write(out)
    text = " ".join((out / "report.md").read_text().split())
    assert "are chosen on about a quarter of the labels, of recordings of their own" in text and "optimistic" not in text
    assert "The reported fold chose nothing but a pretraining's step, by its loss without labels, and was scored once per cell" in text


def test_corpora_of_one_division_each_have_no_rotations(changed):
    """Though their divisions have names; names of any letters, and words, tell parts apart and find their pictures."""

    def two(table):
        first = [row | {"corpus": "häufig gesagt", "folds": "one"} for row in table["runs"] if row["folds"] == "a"]
        other = [row | {"corpus": "häufig gerufen", "folds": "two"} for row in table["runs"] if row["folds"] == "b"]
        table["runs"] = first + other

    out = changed(two)
    report.write(out)
    text = " ".join((out / "report.md").read_text().split())
    assert "one set of folds each" in text and "the rotations' test recordings are judged together" not in text
    assert {file.stem for file in (out / "tables").glob("uar*.csv")} == {"uar", "uar_häufig_gesagt", "uar_häufig_gerufen"}
    page = (out / "report.html").read_text()
    assert 'src="figures' not in page and page.count("data:image/png") == len(list((out / "figures").glob("*.png")))


def test_a_report_without_a_pretrained_arm_does_not_speak_of_one(changed, undrawn):
    def functionals(table):
        table["runs"] = [row for row in table["runs"] if row["arm"] in ("scratch", "constant")]

    out = changed(functionals)
    report.write(out)
    text = (out / "report.md").read_text()
    assert text.startswith("# Labels and scores on demo") and "The pretraining has" not in text


def test_trainings_that_left_no_evaluations_have_no_curves(changed, undrawn):
    out = changed(lambda table: [row["selection"].pop("evaluations") for row in table["runs"] if row["selection"]])
    report.write(out)
    assert "Validation score against the training step" not in (out / "report.md").read_text()


def test_it_says_what_the_trained_arms_read(changed, undrawn):
    out = changed(lambda table: table["config"].update(finetune={"objective": {"reads": "encoder+functionals"}}))
    report.write(out)
    assert "trained arms, pretrained or not, read functionals of the whole segment beside their encoder" in (out / "report.md").read_text()


def test_odd_names_survive_in_every_form(changed, undrawn):
    names = ["a|b", "<i>c</i>", "d_e & f"]

    def odd(table):
        table["runs"] = [row | {"classes": names, "corpus": "<b>x_y</b>", "synthetic": False} for row in table["runs"]]

    out = changed(odd)
    report.write(out)
    markdown, html, tex = ((out / name).read_text() for name in ("report.md", "report.html", "tables/per_emotion.tex"))
    assert "recall of a\\|b" in markdown and "<td>recall of a|b</td>" in html.replace(' style="text-align:left"', "")
    assert "&lt;i&gt;c&lt;/i&gt;" in html and "<i>" not in html and "<b>" not in html and "SYNTHETIC" not in html
    assert "recall of d\\_e \\& f" in tex


def test_the_illustration_is_drawn_where_there_is_one(changed):
    def few(table):
        table["runs"] = [row for row in table["runs"] if row["arm"] != "scratch" and row["budget"] == 0]

    out, rng = changed(few), np.random.default_rng(0)
    results.keep_predictions(
        out, Path("illustration"), features=rng.normal(size=(2, 6, 8)), masked=rng.random((2, 6)) < 0.5,
        reconstructed=rng.normal(size=(2, 6, 8)), num_steps=np.array([6, 4]), stack=2, hop=0.02, before=rng.normal(size=(12, 4)),
        after=rng.normal(size=(12, 4)), emotion=np.array(["happy", "sad"] * 6), recording=np.array([f"r{i}" for i in range(12)]),
    )  # fmt: skip
    report.write(out)
    for name in ("reconstruction", "embedding_map"):
        assert (out / "figures" / f"{name}.png").stat().st_size and f"figures/{name}.png" in (out / "report.md").read_text()


def test_a_map_shows_a_stratified_choice_of_many_segments(monkeypatch):
    placed = []

    class Map:
        def __init__(self, **_):
            pass

        def fit_transform(self, vectors):
            placed.append(vectors)
            return vectors[:, :2]

    monkeypatch.setattr(report.figures, "TSNE", Map)
    monkeypatch.setattr(report.figures, "_MOST", 100)
    emotion, recording = np.repeat(["happy", "rare"], [570, 30]), np.array([f"r{i % 3}" for i in range(600)])
    vectors = np.stack([emotion == "rare", recording == "r1", np.arange(600)], 1).astype(np.float32)
    illustration = {"before": vectors, "after": vectors, "emotion": emotion, "recording": recording}
    figure = report.figures.embedding_map(illustration, "speaker")
    np.testing.assert_array_equal(*placed)
    assert len(placed[0]) == 100 and placed[0][:, 0].sum() == 5 and abs(placed[0][:, 1].sum() - 100 / 3) < 2
    assert [axes.get_title().split(", ")[1] for axes in figure.axes] == ["by emotion"] * 2 + ["by speaker"] * 2
    labels = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert labels == ["happy", "rare", "r0", "r1", "r2"]


def test_a_folder_that_cannot_be_written_is_one_sentence(changed, monkeypatch, capsys):
    out = changed(lambda table: None)
    (out / "tables").write_text("")
    monkeypatch.setattr("sys.argv", ["report", str(out)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and f"error: {out / 'tables'} cannot be read or written" in capsys.readouterr().err


def test_a_fold_of_few_segments_has_no_map(folder, tmp_path):
    out = make_comparison.copy(folder, tmp_path / "few", lambda _: None)
    few = {"before": np.ones((3, 4)), "after": np.ones((3, 4)), "emotion": np.array(["joy"] * 3), "recording": np.array(["a"] * 3)}
    results.keep_predictions(out, Path("illustration"), **few)
    report.write(out)
    assert "What the encoder has learned" in (out / "report.md").read_text() and "embedding_map" not in (out / "report.md").read_text()


def test_a_learning_curve_shows_what_pretraining_adds(folder):
    c = Comparison(folder)
    scores, gains = figures.learning_curve(c, "", "uar").axes
    assert c.main_pairs("") == [("pretrained", "scratch")]
    (line,) = (own for own in gains.lines if len(own.get_xdata()) == 3 and own.get_marker() == "o")
    np.testing.assert_allclose(
        np.asarray(line.get_ydata(), float), [c.difference("", "pretrained", "scratch", b, "uar").value for b in (30, 60, 0)]
    )
    assert [own.get_text() for own in gains.get_legend().get_texts()] == [
        "pretrained",
        "scratch",
        "constant predictor",
        "pretrained less scratch",
    ]
