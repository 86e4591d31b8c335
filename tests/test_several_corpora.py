"""Pretraining on several corpora, on one without labels or test fold, on other speech than is labelled; comparing several at once."""

import importlib
import json

import numpy as np
import pytest

from jax_emossl import config as fields
from jax_emossl import report, results, workdir
from jax_emossl.card import Card
from jax_emossl.comparison import Comparison
from jax_emossl.data import corpora, csd
from jax_emossl.data.batches import Segments
from jax_emossl.data.indices import Selection
from jax_emossl.errors import UserError
from jax_emossl.experiment import build

CORPUS = '''
"""Three seconds each of some people at 50 frames a second, or so many, in one of two moods or none."""
import json

import numpy as np

from jax_emossl.data import csd
from jax_emossl.data.corpora import Files, cache_dir

NAME, NAMES, LEVEL, LABELS, FEATURES, RATE = {settings}


def files():
    folder = cache_dir() / NAME
    labels = str(folder / "labels.csd") if LABELS else ""
    return Files(str(folder / "features.csd"), labels, str(folder / "folds.json"), create=lambda: create(folder))


def create(folder):
    folder.mkdir(parents=True)
    rng, times = np.random.default_rng(len(NAME)), np.arange(3 * RATE + 1) / RATE
    spans, labels = np.array([[0, 1], [1, 2], [2, 3]]), np.array([[3, 0], [0, 3], [0, 0]])
    recordings = [(name, LEVEL + rng.normal(size=(3 * RATE, 2)), np.column_stack([times[:-1], times[1:]])) for name in sum(NAMES.values(), [])]
    csd.write(folder / "features.csd", "speech", recordings, {{"dimension names": FEATURES}})
    if LABELS:
        csd.write(folder / "labels.csd", "labels", [(name, labels, spans) for name, *_ in recordings], {{"dimension names": ["joy", "anger"]}})
    (folder / "folds.json").write_text(json.dumps(NAMES))
'''
EAST = ("east", {"train": list("abcd"), "valid": list("ef"), "test": list("gh")}, 0.0, True, ["pitch", "loudness"])
WEST = ("west", {"train": list("ABCD"), "valid": list("EF"), "test": list("GH")}, 9.0, True, ["pitch", "loudness"])
TAPES = ("tapes", {"train": list("KLM"), "valid": list("N")}, 5.0, False, ["pitch", "loudness"])
OTHER = ("other", {"train": list("OPQ"), "valid": list("R"), "test": list("S")}, 0.0, True, ["pitch", "shimmer"])
AGAIN = ("again", {"train": ["g", "X"], "valid": ["Y"], "test": ["Z"]}, 0.0, True, ["pitch", "loudness"])
FAST = ("fast", {"train": list("12"), "valid": ["3"], "test": ["4"]}, 0.0, True, ["pitch", "loudness"], 100)


@pytest.fixture(autouse=True)
def named(tmp_path, monkeypatch):
    """The corpora above by their names."""
    for own in (EAST, WEST, TAPES, OTHER, AGAIN, FAST):
        (tmp_path / f"{own[0]}.py").write_text(CORPUS.format(settings=repr((*own, 50)[:6])))
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    monkeypatch.setenv("EMOSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tiny_config):
    """A tiny config of configs/<name>.py on corpora by name."""

    def make(name, corpus, **more):
        return tiny_config(name, {"data.prepared": "", "data.corpus": corpus, **more})

    return make


@pytest.fixture
def pair(comparison_config):
    """A tiny comparison of two corpora."""
    config = comparison_config.copy_and_resolve_references()
    config.data.update(prepared="", corpus="east+west")
    config.compare.update({"arms": ("pretrained", "frozen", "random"), "label_counts": (6, 0), "strategies": ("linear",), "seeds": 2})
    return config


def run(config, folder):
    fields.check(config)
    workdir.enter(folder, config)
    return importlib.import_module(f"jax_emossl.tasks.{config.task}").run(config, folder)


def test_segments_of_several_corpora_are_each_normalised_toward_their_own_training_fold(small):
    both = build(small("pretrain", "east+west")).segments("train")
    parts = [build(small("pretrain", name)).segments("train") for name in ("east", "west")]
    assert len(both) == 24 and both.recordings.tolist() == [r for part in parts for r in part.recordings]
    expected = [part.steps(j) for part in parts for j in range(len(part))]
    for i, steps in enumerate(expected):
        np.testing.assert_array_equal(both.steps(i), steps)
    assert abs(np.concatenate([both.steps(i) for i in range(24)]).mean()) < 0.1  # although one is 9 above the other
    picked = both.take(np.array([20, 3]))
    batch = picked.gather(Selection(np.array([0, 1]), np.zeros(2, int), np.ones(2, np.float32), 8))
    np.testing.assert_array_equal(batch["features"][0, : picked.lengths[0]], parts[1].steps(8))
    assert Segments.joined(parts[:1]) is parts[0]


def test_a_pretraining_on_several_corpora_has_seen_them_all(small, tmp_path):
    rows = run(small("pretrain", "east+west"), tmp_path / "run")
    assert {row["corpus"] for row in rows} == {"east+west"} and [row["num_labels"] for row in rows[1::2]] == [24, 24]
    card = Card.load(tmp_path / "run")
    assert (card.corpus, card.recordings, card.judges) == ("east+west", tuple("ABCDabcd"), tuple("EFef"))


def test_a_corpus_without_labels_or_test_fold_is_pretrained_on_and_helps_another(small, tmp_path, capsys):
    rows = run(small("pretrain", "tapes"), tmp_path / "run")
    assert {row["fold"] for row in rows} == {"valid"}
    with pytest.raises(UserError, match="tapes has no labels: it can be pretrained on, and nothing else"):
        build(small("scratch", "tapes"))
    capsys.readouterr()
    experiment = build(small("finetune", "east", init_from=str(tmp_path / "run")))
    assert "features are normalised toward the training fold of east; the encoder was pretrained on tapes" in capsys.readouterr().err
    np.testing.assert_array_equal(experiment.frontend.train.mean, build(small("scratch", "east")).frontend.train.mean)
    assert experiment.encoder is not None and experiment.card().recordings == tuple("KLMabcd")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("east+other", "east has the feature 'loudness' where the corpus other has 'shimmer'"),
        ("east+nowhere", "'nowhere' is no known corpus"),
        ("east+again", "east and again both have a recording 'g'"),
        ("east+fast", "A model step of 0.16 s holds 16 frames of fast, but 8 of east: pretrain on features of one hop"),
        ("east+east", "data.corpus is 'east.east', which names 'east' twice"),
    ],
)
def test_corpora_that_do_not_fit_are_refused(small, corpus, message):
    with pytest.raises(UserError, match=message):
        config = small("pretrain", corpus)
        fields.check(config)
        build(config)


def test_labels_are_learned_of_one_corpus(small):
    with pytest.raises(UserError, match="labels are learned of one corpus: name one, or run a comparison"):
        build(small("scratch", "east+west"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare.pretrain_on": "nowhere"}, "compare.pretrain_on is 'nowhere': 'nowhere' is neither own, others, a corpus"),
        ({"data.corpus": "east", "compare.pretrain_on": "others"}, "compare.pretrain_on names others, but there is one corpus"),
        ({"data.folds": "mine.json"}, "data.folds is given, but data.corpus is 'east.west': compare one corpus"),
        ({"data.corpus": "tapes"}, "tapes has no labels"),
        ({"compare.pretrain_on": "again"}, "A pretraining on again was trained on recording 'g', which these folds hold out"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused_before_anything_is_trained(pair, changes, message, tmp_path):
    pair.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        run(pair, tmp_path / "run")
    assert not (tmp_path / "run" / "pretrain").exists()


def test_two_corpora_are_compared_each_alone_and_both_together(pair, tmp_path):
    rows = run(pair, tmp_path / "run")
    assert {row["corpus"] for row in rows} == {"east", "west"} and len(rows) == 2 * (1 + 3 * 2 * 2)
    for name, own in (("east", "abcd"), ("west", "ABCD")):
        assert Card.load(tmp_path / "run" / "pretrain" / name).recordings == tuple(own)
    both = Comparison(tmp_path / "run")
    east, west = both.parts
    value = both.estimate("", "frozen", 6, "uar").value
    assert value == pytest.approx((east.estimate("", "frozen", 6, "uar").value + west.estimate("", "frozen", 6, "uar").value) / 2)
    assert both.recordings == 4 and both.budget_name(0) == "all" and east.budget_name(0) == "all (12)"
    page = (tmp_path / "run" / "report.md").read_text()
    assert "What pretraining buys on east + west" in page and "within each corpus (whose scores weigh by its number of recordings)" in page
    assert {f"tables/uar{end}.csv" for end in ("", "_east", "_west")} <= {
        str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").glob("tables/*.csv")
    }
    file = tmp_path / "run" / results.RESULTS_FILE
    table = json.loads(file.read_text())
    table["runs"] = [row for row in rows if (row["arm"], row["corpus"]) != ("random", "west")]
    file.write_text(json.dumps(table))
    both = Comparison(tmp_path / "run")
    assert "random" in both.parts[0].arms("") and "random" not in both.arms("")
    assert report.write(tmp_path / "run")


def test_sources_of_pretraining_are_variants_and_what_reads_none_is_answered_once(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: "")
    sources = ("own", "others", "own+others", "west+east")
    pair.compare.update({"variants": tuple((name, (("compare.pretrain_on", name),)) for name in sources), "label_counts": (6,), "seeds": 1})
    rows = run(pair, tmp_path / "run")
    seen = {}
    for config in (tmp_path / "run" / "pretrain").glob("*/*/config.json"):
        seen[config.parent.parent.name, config.parent.name] = json.loads(config.read_text())["data"]["corpus"]
    assert seen == {
        ("own", "east"): "east",
        ("own", "west"): "west",
        ("own+others", "east"): "east+west",
        ("own+others", "west"): "west+east",
    }  # fmt: skip  for the others', each has the other's own already, and for both by name those of own and others
    assert results.read(tmp_path / "run" / results.RESULTS_FILE)["runs"] == rows
    for corpus in ("east", "west"):
        own = {row["variant"]: row for row in rows if (row["arm"], row["corpus"]) == ("random", corpus)}
        assert own.keys() == set(sources) and len({row["predictions"] for row in own.values()}) == 1
        frozen = {row["variant"]: row["predictions"] for row in rows if (row["arm"], row["corpus"]) == ("frozen", corpus)}
        assert len(set(frozen.values())) == 4 and frozen.keys() == set(sources)


def test_a_pretraining_that_is_there_can_be_compared(small, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: "")
    run(small("pretrain", "tapes"), tmp_path / "tapes")
    before = (tmp_path / "tapes" / "results.json").read_bytes()
    pair.data.corpus, pair.compare.pretrain_on = "east", str(tmp_path / "tapes")
    rows = run(pair, tmp_path / "run")
    assert {row["arm"] for row in rows} == {"constant", "pretrained", "frozen", "random"} and not (tmp_path / "run" / "pretrain").exists()
    assert (tmp_path / "tapes" / "results.json").read_bytes() == before == (tmp_path / "tapes" / results.RESULTS_FILE).read_bytes()


def test_pretrainings_of_several_seeds_take_turns(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: "")
    pair.data.corpus = "east"
    pair.compare.update({"pretrainings": 2, "arms": ("frozen",), "label_counts": (0,), "seeds": 3})
    rows = {row["seed"]: row for row in run(pair, tmp_path / "run") if row["arm"] == "frozen"}
    assert [rows[seed]["pretraining"] for seed in range(3)] == [0, 1, 0]
    assert rows[0]["metrics"] == rows[2]["metrics"]  # all labels and the same encoder
    kept = [results.load_arrays(tmp_path / "run" / rows[seed]["predictions"])["scores"] for seed in range(2)]
    assert not np.allclose(*kept)
    seeds = [json.loads((tmp_path / "run" / "pretrain" / name / "config.json").read_text())["seed"] for name in ("", "seed1")]
    assert seeds == [0, 1]


def test_a_variant_that_its_twin_answers_whole_is_written_too(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: "")
    variants = tuple((name, (("compare.pretrain_on", name),)) for name in ("own", "others"))
    pair.compare.update({"variants": variants, "arms": ("random",), "label_counts": (0,), "seeds": 1})
    rows = run(pair, tmp_path / "run")
    kept = results.read(tmp_path / "run" / results.RESULTS_FILE)["runs"]
    assert kept == rows and {row["variant"] for row in kept if row["arm"] == "random"} == {"own", "others"}


def test_a_pretraining_that_heard_a_held_out_recording_is_refused_before_anything_is_trained(small, pair, tmp_path):
    run(small("pretrain", "east"), tmp_path / "east")
    folds = {"train": list("bcdg"), "valid": list("ef"), "test": list("ah")}
    (tmp_path / "other.json").write_text(json.dumps(folds))
    own = str(tmp_path / "cache" / "east" / "folds.json")
    pair.data.update(corpus="east", folds=f"{own},{tmp_path / 'other.json'}")
    pair.compare.pretrain_on = str(tmp_path / "east")
    with pytest.raises(UserError, match="was trained on recording 'a', which these folds hold out"):
        run(pair, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_rotations_and_corpora_that_answer_differently_are_refused_before_anything_is_trained(pair, tmp_path):
    pair.data.corpus, pair.compare.arms = "east", ("random",)
    corpora.load(corpora.split(pair.data)[0])  # makes the files
    folder = tmp_path / "cache" / "east"
    with csd.Sequence(folder / "labels.csd") as said:
        rows = {entry: said.read(entry) for entry in said.ids}
    happy = np.arange(2) == 0
    bare = {entry: (labels * happy if entry in "abcd" else labels, spans) for entry, (labels, spans) in rows.items()}
    swapped = {"train": list("ghef"), "valid": list("cd"), "test": list("ab")}
    (tmp_path / "swapped.json").write_text(json.dumps(swapped))
    rotations = f"{folder / 'folds.json'},{tmp_path / 'swapped.json'}"
    for changed, message in ((bare, "do not have the same classes"), (_twice(rows, "a"), "answers by intensity and .* by category")):
        csd.write(tmp_path / "labels.csd", "labels", [(e, *own) for e, own in changed.items()], {"dimension names": ["joy", "anger"]})
        pair.data.update(labels=str(tmp_path / "labels.csd"), folds=rotations)
        with pytest.raises(UserError, match=message):
            run(pair, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def _twice(rows, entry):
    """One segment of a recording carries both emotions."""
    labels, spans = rows[entry]
    return rows | {entry: (np.maximum(labels, [[3, 3], [0, 0], [0, 0]]), spans)}


def test_the_folder_of_a_corpus_can_be_pretrained_on_beside_another(small, pair, tmp_path):
    corpora.load(corpora.split(small("pretrain", "tapes").data)[0])
    folder = str(tmp_path / "cache" / "tapes") + "/"
    pair.data.corpus, pair.compare.pretrain_on = "east", f"own+{folder}"
    fields.check(pair)
    assert fields.part(pair, "pretrain").data.corpus == f"east+{folder}"
