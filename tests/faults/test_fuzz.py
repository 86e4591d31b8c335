"""Files that have been damaged or made up: every reader gives something valid or refuses in one sentence; it never breaks or hangs."""

import contextlib
import copy
import faulthandler
import functools
import io
import json
import math
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key  # the terminal's, which is not captured
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from make_corpus import Files

from jax_emossl import card as cards
from jax_emossl import checkpoint, figures, report, results, significance, workdir
from jax_emossl.card import Card
from jax_emossl.data import corpus, csd, prepared
from jax_emossl.data.folds import read_folds
from jax_emossl.errors import UserError

HANG = 120  # seconds for a whole test, after which the stack is shown and the session ended
REAL = Path(os.environ.get("EMOSSL_DATA", "/nowhere")) / "nemo"
VALUES = (
    None,
    True,
    -1,
    0,
    2.5,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    10**400,
    "",
    "x",
    "1",
    "a\nb",
    "\ud800",
    [],
    [[]],
    [None],
    ["x", "x"],
    {},
    {"": {}},
)


def cases(number):
    """So many examples, the same in every session."""
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip


changes = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "zero", "cut", "insert", "repeat", "swap")),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(text, made):
    """A file's bytes after some changes: (kind, place as a share of the file, length, value)."""
    for kind, place, length, value in made:
        at = int(place * len(text))
        before, part, after = text[:at], text[at : at + length], text[at + length :]
        text = {
            "flip": before + bytes(b ^ (1 << value % 8) for b in part[:1]) + part[1:] + after,
            "set": before + bytes([value]) * len(part) + after,
            "zero": before + bytes(len(part)) + after,
            "cut": before,
            "insert": before + bytes([value]) * length + part + after,
            "repeat": before + part + part + after,
            "swap": before + after[:length] + part + after[length:],
        }[kind]
    return text


edits = st.lists(
    st.tuples(st.sampled_from(("replace", "remove", "repeat", "wrap")), st.integers(0, 10**6), st.sampled_from(VALUES)),
    min_size=1,
    max_size=2,
)


def edited(table, made):
    """JSON with the values at some places replaced, removed, doubled or of another type."""
    table = json.loads(json.dumps({"top": table}))
    for kind, number, value in made:
        places = list(_places(table))
        holder, key = places[number % len(places)]
        if kind == "replace" or holder is table:
            holder[key] = copy.deepcopy(value)  # the next edit may fall within it
        elif kind == "remove":
            del holder[key]
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[f"{key} again"] = holder[key]
    return json.dumps(table["top"]).encode()


def _places(node):
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


@pytest.fixture(autouse=True)
def _no_hang(request):
    faulthandler.dump_traceback_later(HANG, exit=True, file=request.config.stash[fault_handler_stderr_fd_key])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _nothing_unpickled(monkeypatch):
    def refuse(*_, **__):
        pytest.exit("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)


@pytest.fixture
def reads(tally, tmp_path):
    """Reads a case: what is loaded must pass the checks, what is refused must be refused in one sentence; no file may change."""

    def case(what, read, check, writes=()):
        before = _tree(tmp_path, writes)
        try:
            check(read())
            tally[f"fuzz cases, {what}: loaded"] += 1
        except UserError as error:
            message = str(error)
            assert message.endswith(".") and message.isprintable() and len(message) < 2000, repr(message)
            tally[f"fuzz cases, {what}: refused"] += 1
        tally["fuzz cases in all"] += 1
        assert _tree(tmp_path, writes) == before

    return case


def _tree(folder, but):
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in but)
    return {path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


# Folds


def check_folds(folds):
    assert list(folds) == list(prepared.FOLDS)
    ids = [id_ for fold in folds.values() for id_ in fold]
    assert all(isinstance(id_, str) for id_ in ids) and len(set(ids)) == len(ids)


FOLDS = json.dumps({"train": ["a", "b", "ą"], "valid": ["c"], "test": ["d", "e"]}).encode()


@cases(200)
@given(changes)
def test_folds_of_changed_bytes(reads, tmp_path, made):
    file = tmp_path / "folds.json"
    real = sorted(REAL.glob("folds*.json"))
    file.write_bytes(damaged(real[len(made) % len(real)].read_bytes() if real and made[0][3] % 2 else FOLDS, made))
    reads("folds", lambda: read_folds(file), check_folds)


@cases(200)
@given(edits)
def test_folds_of_changed_structure(reads, tmp_path, made):
    file = tmp_path / "folds.json"
    file.write_bytes(edited(json.loads(FOLDS), made))
    reads("folds", lambda: read_folds(file), check_folds)


# Computational sequences


def check_sequence(file):
    with csd.Sequence(file) as sequence:
        for entry in sequence.ids[:20]:
            with contextlib.suppress(UserError):
                features, intervals = sequence.read(entry)
                assert features.dtype == np.float32 and features.ndim == 2
                assert intervals.dtype == np.float64 and intervals.shape == (len(features), 2)
                assert np.isfinite(intervals).all() and (intervals[:, 0] <= intervals[:, 1]).all()
        for entry in sequence.ids[:20]:
            sequence.read(entry)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Bytes of small `.csd` files: plain, compressed, and where there is real data, its labels and some of its features."""
    folder = tmp_path_factory.mktemp("sequences")
    files = Files(folder)
    with h5py.File(files.features) as whole, h5py.File(folder / "packed.csd", "w") as packed:
        for name in whole["acoustic/data"]:
            values = whole[f"acoustic/data/{name}/features"][:]
            packed.create_dataset(f"root/data/{name}/features", data=values, chunks=(32, 2), compression="gzip")
            packed.create_dataset(
                f"root/data/{name}/intervals", data=whole[f"acoustic/data/{name}/intervals"][:], chunks=True, shuffle=True
            )
    texts = [files.features.read_bytes(), files.labels.read_bytes(), (folder / "packed.csd").read_bytes()]
    if REAL.is_dir():
        texts.append((REAL / "NEMO_Labels.csd").read_bytes())
        with h5py.File(REAL / "NEMO_eGeMAPSv02.csd") as whole, h5py.File(folder / "few.csd", "w") as few:
            (root,) = whole
            for name in list(whole[root]["data"])[:2]:
                for part, values in whole[root]["data"][name].items():
                    few.create_dataset(f"{root}/data/{name}/{part}", data=values[:400], compression="gzip")
            whole.copy(f"{root}/metadata", few[root])
        texts.append((folder / "few.csd").read_bytes())
    return texts


@cases(600)
@given(st.integers(0, 100), changes)
def test_sequences_of_changed_bytes(reads, sequences, tmp_path, number, made):
    file = tmp_path / "x.csd"
    file.write_bytes(damaged(sequences[number % len(sequences)], made))
    reads(".csd", lambda: file, check_sequence)


def test_a_shape_that_would_fill_the_memory_is_refused(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        entry = file["root/data"].create_group("a")
        entry.create_dataset("features", (10**10, 3), "<f4", chunks=(64, 3), compression="gzip")
        entry.create_dataset("intervals", (10**10, 2), "<f8", chunks=(64, 2))
    with (
        csd.Sequence(tmp_path / "x.csd") as sequence,
        pytest.raises(UserError, match="entry 'a', has features of shape .*, which it does not hold"),
    ):
        sequence.read("a")


def test_values_that_are_no_numbers_to_numpy_are_refused(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a", np.zeros((2, 1)), np.zeros((2, 2)))])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        del file["root/data/a/features"]
        h5py.h5d.create(file["root/data/a"].id, b"features", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2, 1)))
    with csd.Sequence(tmp_path / "x.csd") as sequence, pytest.raises(UserError, match="entry 'a', "):
        sequence.read("a")


def test_an_entry_whose_name_is_no_text_is_refused(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a\nb", np.zeros((2, 1)), np.zeros((2, 2)))])
    with pytest.raises(UserError, match=r"has an entry named 'a\\nb': the file is damaged"):
        csd.Sequence(tmp_path / "x.csd")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@cases(200)
@given(st.sampled_from(("features", "labels")), changes)
def test_preparing_changed_bytes(reads, files, tmp_path, name, made):
    def prepare():
        corpus.build(files.features, files.labels, files.folds, files.out, unlabelled=True)
        return prepared.load(files.out)

    whole = getattr(files, name)
    kept = whole.read_bytes()
    whole.write_bytes(damaged(kept, made))
    try:
        reads("preparation", prepare, check_corpus, writes=(files.out.parent.name,))
        assert {path.name for path in files.out.parent.glob("*")} <= {files.out.name}  # whole or not at all
    finally:
        whole.write_bytes(kept)
        shutil.rmtree(files.out, ignore_errors=True)


# Prepared corpora


def check_corpus(loaded):
    width, emotions = len(loaded.features), len(loaded.emotions)
    names = (loaded.name, *loaded.features, *loaded.emotions, *loaded.train_recordings)
    assert all(isinstance(name, str) for name in names) and isinstance(loaded.synthetic, bool)
    assert len(set(loaded.features)) == width and len(set(loaded.emotions)) == emotions
    assert loaded.hop is None or 0 < loaded.hop < math.inf
    for fold in loaded.folds.values():
        assert fold.frames.ndim == 2 and fold.frames.shape[1] == width and fold.frames.dtype == np.float32
        assert fold.offsets[0] == 0 and fold.offsets[-1] == len(fold.frames) and (np.diff(fold.offsets) > 0).all()
        assert len(fold.labels) == len(fold) == len(fold.indices) == len(fold.intervals) == len(fold.offsets) - 1
        assert fold.labels.size == 0 or (fold.labels.min() >= 0 and fold.labels.max() <= 3)
        assert np.isfinite(fold.intervals).all() and (fold.intervals[:, 0] <= fold.intervals[:, 1]).all() and (fold.indices >= 0).all()
        assert set(fold.recordings) <= set(loaded.statistics)
    for statistics in (loaded.train_statistics, *loaded.statistics.values()):
        assert len(statistics.mean) == len(statistics.variance) == width and 0 <= statistics.seconds < math.inf
    assert set(prepared.FOLDS) <= set(loaded.folds)
    assert isinstance(loaded.summary, dict)


@pytest.fixture
def folder(files):
    corpus.build(files.features, files.labels, files.folds, files.out, unlabelled=True)
    return files.out


def changed(file, text, read):
    """Runs `read` while the file holds `text`."""
    kept = file.read_bytes()
    try:
        file.write_bytes(text)
        read()
    finally:
        file.write_bytes(kept)


@cases(400)
@given(st.integers(0, 10**6), changes)
def test_prepared_corpora_of_changed_bytes(reads, folder, number, made):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[number % len(files)]
    changed(file, damaged(file.read_bytes(), made), lambda: reads("prepared corpora", lambda: prepared.load(folder), check_corpus))


@cases(300)
@given(edits)
def test_prepared_corpora_of_changed_structure(reads, folder, made):
    file = folder / "corpus.json"
    text = edited(json.loads(file.read_text()), made)
    changed(file, text, lambda: reads("prepared corpora", lambda: prepared.load(folder), check_corpus))


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name", ["frames", "offsets", "labels"])
def test_nothing_is_unpickled(name, reads, folder, tmp_path):
    np.save(folder / "test" / f"{name}.npy", np.array([_Bomb(tmp_path / "bang")]), allow_pickle=True)
    np.savez(tmp_path / "x.npz", scores=np.array([_Bomb(tmp_path / "bang")]))
    for read in (lambda: prepared.load(folder), lambda: results.load_arrays(tmp_path / "x.npz")):
        with pytest.raises(UserError):
            read()
    assert not (tmp_path / "bang").exists()


# Results


def check_results(table):
    assert isinstance(table["config"], dict) and isinstance(table["version"], str)
    for row in table["runs"]:
        assert isinstance(row["arm"], str) and isinstance(row["fold"], str) and isinstance(row["metrics"], dict)
    if table["runs"]:
        assert isinstance(results.table(table["runs"]), str)


def _results():
    numbers = {"mae": 0.5, "auroc": None, "per_emotion": {"happy": {"auroc": None}}}
    row = {"corpus": "demo", "synthetic": True, "arm": "scratch", "num_labels": 3, "seed": 0, "fold": "test", "step": 6}
    row |= {"selection": {"fold": "valid", "metric": "mae", "value": 0.4}, "metrics": numbers, "undefined": {"auroc": "one class"}}
    return {
        "runs": [row, row | {"arm": "constant", "step": None, "selection": None}],
        "config": {"seed": 0},
        "command": "c",
        "version": "1",
    }


@cases(200)
@given(changes)
def test_results_of_changed_bytes(reads, tmp_path, made):
    file = tmp_path / "results.json"
    file.write_bytes(damaged(json.dumps(_results()).encode(), made))
    reads("results.json", lambda: results.read(file), check_results)


@cases(300)
@given(edits)
def test_results_of_changed_structure(reads, tmp_path, made):
    file = tmp_path / "results.json"
    file.write_bytes(edited(_results(), made))
    reads("results.json", lambda: results.read(file), check_results)


# Comparisons


ARRAYS = (
    None,
    np.zeros(6),
    np.zeros((6, 2)),
    np.zeros((5, 2), np.float32),
    np.full((6, 2), np.nan, np.float32),
    np.full(6, 10**12),
    np.full(6, -(10**12)),
    np.ones(6, int),
    np.ones(6, bool),
    np.full(6, 2**63, np.uint64),
    np.array(["a"] * 6),
    np.array([b"\xff"] * 6),
    np.array([""] * 6),
    np.array("a"),
    np.zeros(0),
    np.zeros((6, 2), complex),
    np.zeros(6, "datetime64[s]"),
    np.zeros(6, [("a", int)]),
)
REPORT = ("report.md", "report.html", "tables", "figures")


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A comparison of two arms in `tmp_path`: its results.json, and the arrays of either's predictions. No figure is drawn."""
    for name in ("learning_curve", "gains_per_emotion", "confusions", "save"):  # they would take most of the time
        monkeypatch.setattr(figures, name, lambda *_: b"")
    monkeypatch.setattr(significance, "REPLICATES", 20)
    scores = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    arrays = {"scores": scores, "target": np.arange(6) % 2, "recordings": np.array(list("aaabbb"))}
    table = _results()
    row, constant = table["runs"]
    cell = {"variant": "", "folds": "", "budget": 0, "metrics": {"uar": 0.5}}
    chosen = {"fold": "valid", "metric": "uar", "value": 0.4, "strategy": "full", "learning_rate": 1e-3}
    table["runs"] = [constant | cell]
    for arm, budget in (("pretrained", 3), ("pretrained", 0), ("scratch", 3), ("scratch", 0)):
        kept = results.keep_predictions(tmp_path, Path(arm), **arrays)
        own = {"arm": arm, "budget": budget, "selection": chosen, "predictions": kept, "classes": ["neutral", "happy"]}
        table["runs"].append(row | cell | own)
    table["config"]["data"] = {"norm_prior": 180.0}
    file = tmp_path / results.RESULTS_FILE
    file.write_text(json.dumps(table))
    return file, arrays


def check_report(words):
    assert "pretrained" in words or "scratch" in words


@cases(200)
@given(changes)
def test_comparisons_of_changed_bytes(reads, cells, made):
    file, _ = cells
    text = damaged(file.read_bytes(), made)
    changed(file, text, lambda: reads("comparisons", lambda: report.write(file.parent), check_report, writes=REPORT))


@cases(300)
@given(edits)
def test_comparisons_of_changed_structure(reads, cells, made):
    file, _ = cells
    text = edited(json.loads(file.read_text()), made)
    changed(file, text, lambda: reads("comparisons", lambda: report.write(file.parent), check_report, writes=REPORT))


@cases(200)
@given(changes)
def test_predictions_of_changed_bytes(reads, cells, made):
    file, arrays = cells
    kept = file.parent / "predictions/scratch.npz"

    def check(loaded):
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items() if name in loaded)  # their sums are checked

    changed(kept, damaged(kept.read_bytes(), made), lambda: reads("predictions", lambda: results.load_arrays(kept), check))


@cases(200)
@given(st.sampled_from(("scores", "target", "recordings")), st.sampled_from(ARRAYS), st.booleans())
def test_predictions_of_changed_structure(reads, cells, name, array, both):
    file, arrays = cells
    np.savez(stream := io.BytesIO(), **{key: value for key, value in (arrays | {name: array}).items() if value is not None})
    with contextlib.ExitStack() as restored:
        for arm in ("pretrained", "scratch") if both else ("scratch",):
            kept = file.parent / f"predictions/{arm}.npz"
            restored.callback(kept.write_bytes, kept.read_bytes())
            kept.write_bytes(stream.getvalue())
        reads("predictions", lambda: report.write(file.parent), check_report, writes=REPORT)


# Configs


@pytest.fixture
def entered(reads, tiny_config, tmp_path):
    """Changes a run's config.json, reads it, and enters the folder with the config as it was."""
    config = tiny_config("finetune", {"data.norm_prior": math.inf})
    (tmp_path / "checkpoints").mkdir()  # a run has started there

    def check(loaded):
        json.dumps(workdir.plain(loaded))

    def check_own(loaded):
        assert workdir.plain(loaded) == workdir.plain(config)

    def enter():
        workdir.enter(tmp_path, config)
        return workdir.read_config(tmp_path)

    def case(change):
        file = tmp_path / workdir.CONFIG_FILE
        file.write_bytes(change(json.dumps(workdir.plain(config), indent=1).encode()))
        reads("config.json", lambda: workdir.read_config(tmp_path), check)
        reads("workdirs", enter, check_own, writes=(workdir.LOCK_FILE,))

    return case


@cases(200)
@given(changes)
def test_configs_of_changed_bytes(entered, made):
    entered(lambda text: damaged(text, made))


@cases(300)
@given(edits)
def test_configs_of_changed_structure(entered, made):
    entered(lambda text: edited(json.loads(text), made))


def test_configs_of_any_prior(entered):
    def change(text, value):
        table = json.loads(text)
        table["data"]["norm_prior"] = value
        return json.dumps(table).encode()

    for value in VALUES:
        entered(functools.partial(change, value=value))


# Checkpoints


@pytest.fixture
def trained_run(pretraining, tmp_path):
    """A copy of a finished pretraining."""
    return shutil.copytree(pretraining, tmp_path / "run")


def check_card(card):
    frontend = card.frontend
    assert frontend.pool >= 1 and frontend.stack >= 1 and 0 < frontend.clip < math.inf and frontend.prior >= 0
    assert 0 < frontend.frame_seconds < math.inf and len(frontend.train.mean) == len(frontend.names)
    assert all(isinstance(name, str) for name in (card.corpus, *frontend.names, *card.emotions, *card.recordings, *card.classes))
    assert isinstance(card.model, dict) and isinstance(card.head, str) and isinstance(card.num_labels, int)


@cases(150)
@given(changes)
def test_cards_of_changed_bytes(reads, trained_run, made):
    file = trained_run / cards.FILE
    changed(file, damaged(file.read_bytes(), made), lambda: reads("card.json", lambda: Card.load(trained_run), check_card))


@cases(250)
@given(edits)
def test_cards_of_changed_structure(reads, trained_run, made):
    file = trained_run / cards.FILE
    text = edited(json.loads(file.read_text()), made)
    changed(file, text, lambda: reads("card.json", lambda: Card.load(trained_run), check_card))


@cases(150)
@given(st.integers(0, 10**6), changes, st.booleans())
def test_checkpoints_of_changed_bytes(reads, trained_run, pretraining, number, made, both):
    """One file of the newest checkpoint, or the same kind of file of all of them."""
    own = {folder: sorted(path for path in folder.rglob("*") if path.is_file()) for folder in (trained_run / checkpoint.FOLDER).iterdir()}
    chosen = [
        paths[number % len(own[trained_run / checkpoint.FOLDER / "6"]) % len(paths)]
        for folder, paths in own.items()
        if both or folder.name == "6"
    ]
    sound = _best(pretraining)

    def check(loaded):
        assert checkpoint.digest(loaded.variables) == sound[loaded.step]

    with contextlib.ExitStack() as restored:
        for file in chosen:
            restored.callback(file.write_bytes, file.read_bytes())
            file.write_bytes(damaged(file.read_bytes(), made))
        reads("checkpoints", lambda: checkpoint.load_best(trained_run), check)


@functools.cache
def _best(run):
    """Sums of the best variables by step, from every checkpoint alone."""
    sums = {}
    for step in sorted(int(folder.name) for folder in (run / checkpoint.FOLDER).iterdir()):
        copy = shutil.copytree(run, run.parent / f"{run.name}-{step}")
        for other in (copy / checkpoint.FOLDER).iterdir():
            if other.name != str(step):
                shutil.rmtree(other)
        best = checkpoint.load_best(copy)
        sums[best.step] = checkpoint.digest(best.variables)
    return sums
