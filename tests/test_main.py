import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from conftest import ROOT, TINY

from jax_emossl import checkpoint, main, preemption
from jax_emossl.data import csd

SMALL = [f"--config.{field}={value}" for field, value in TINY.items()]
PRETRAIN = ["--config=configs/pretrain.py", *SMALL, "--config.train.crop=2.56", "--config.objective.span=0.64"]
SCRATCH = ["--config=configs/scratch.py", *SMALL, "--config.train.probe_steps=2"]
FINETUNE = ["--config=configs/finetune.py", *SMALL, "--config.train.probe_steps=2"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(preemption, "install", lambda: None)

    def run(*arguments, workdir=tmp_path / "workdir"):
        defined = set(flags.FLAGS)
        sys.modules.pop("config_config", None)  # a second config would be loaded into the first one's module
        monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments), *([f"--workdir={workdir}"] if workdir else [])])
        capsys.readouterr()
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
        finally:  # the flags of config fields are made anew for every config
            for name in set(flags.FLAGS) - defined:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(command):
    """Runs a command that must end with code 2 and one sentence, which is returned."""

    def run(*arguments, **options):
        code, _, err = command(*arguments, **options)
        assert code == 2
        assert "Traceback" not in err
        line = err.strip().splitlines()[-1]
        assert err.count("error: ") == 1 and line.startswith("error: ") and line.endswith(".")
        return line

    return run


@pytest.fixture(scope="session")
def data(demo_folder):
    return f"--config.data.prepared={demo_folder}"


@pytest.fixture
def files(demo_files, tmp_path):
    """Arguments that name the three files of a corpus; those given take the place of the demo's."""

    def arguments(features=demo_files / "DEMO_COVAREP.csd", labels=demo_files / "DEMO_Labels.csd", folds=demo_files / "folds.json"):
        return [f"--config.data.features={features}", f"--config.data.labels={labels}", f"--config.data.folds={folds}"]

    return arguments


@pytest.fixture
def folds(demo_files, tmp_path):
    """Writes a file of folds, changed from the demo's."""

    def write(**changed):
        table = json.loads((demo_files / "folds.json").read_text()) | changed
        (tmp_path / "folds.json").write_text(json.dumps({name: ids for name, ids in table.items() if ids is not None}))
        return tmp_path / "folds.json"

    return write


def rewrite(source, target, change, metadata=None):
    """Copies a .csd file, its features changed by `change`."""
    with csd.Sequence(source) as file:
        entries = [(id_, *file.read(id_)) for id_ in file.ids]
        csd.write(target, file.root, [(id_, change(x), t) for id_, x, t in entries], file.metadata if metadata is None else metadata)
    return target


# Commands


def test_pretrain_finetune_evaluate(command, data, tmp_path):
    code, out, _ = command(*PRETRAIN, data, workdir=tmp_path / "pretrain")
    assert code == 0
    assert re.search(r"^pretrain +0 +0 +valid +\d+ +\d\.\d{3} +\d\.\d{3}$", out, re.M) and re.search(
        r"^constant +36 +0 +valid +- +\d\.\d{3} +-$", out, re.M
    )

    code, out, _ = command(
        *FINETUNE, data, f"--config.init_from={tmp_path}/pretrain", "--config.num_labels=12", workdir=tmp_path / "finetune"
    )
    assert code == 0
    assert re.search(r"^pretrained +12 +0 +test ", out, re.M) and re.search(r"^constant +36 +0 +test ", out, re.M)
    assert "Corpus demo (SYNTHETIC)" in out and "validation fold: 18 segments of 3 recordings" in out and "transductive" in out
    assert out.strip().endswith(f"Results: {tmp_path}/finetune/results.json")

    arguments = ["--config=configs/evaluate.py", f"--config.init_from={tmp_path}/finetune"]
    code, out, _ = command(*arguments, "--config.fold=test", workdir=tmp_path / "evaluate")
    assert code == 0
    trained, evaluated = (json.loads((tmp_path / name / "results.json").read_text())["runs"] for name in ("finetune", "evaluate"))
    assert evaluated == [row for row in trained if row["fold"] == "test"]
    assert command(*arguments, "--config.fold=test", workdir=tmp_path / "evaluate")[0] == 0


def test_every_run_leaves_its_files(pretraining, finetuning):
    for folder in (pretraining, finetuning):
        assert {"config.json", "metrics.jsonl", "results.json", "card.json", "checkpoints"} <= {path.name for path in folder.iterdir()}
        assert list(folder.glob("events.out.tfevents.*"))
        assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 6


def test_pretraining_can_be_evaluated(command, pretraining, tmp_path):
    code, out, _ = command("--config=configs/evaluate.py", f"--config.init_from={pretraining}", "--config.fold=train")
    assert code == 0 and re.search(r"^pretrain +0 +0 +train +6 +\d\.\d{3} +\d\.\d{3}$", out, re.M)


def test_evaluation_takes_the_corpus_that_is_given(command, finetuning, files, demo_files, tmp_path):
    labels = rewrite(demo_files / "DEMO_Labels.csd", tmp_path / "labels.csd", lambda x: 3 - x)
    code, _, _ = command("--config=configs/evaluate.py", f"--config.init_from={finetuning}", *files(labels=labels))
    trained, evaluated = (json.loads((folder / "results.json").read_text())["runs"] for folder in (finetuning, tmp_path / "workdir"))
    assert code == 0 and evaluated[0]["arm"] == "pretrained" and evaluated[0]["corpus"] == "DEMO_COVAREP"
    assert evaluated[0]["metrics"]["mae"] > [row for row in trained if row["fold"] == "test"][0]["metrics"]["mae"] + 0.5


def test_the_same_command_again_does_not_train_again(command, data, tmp_path):
    assert command(*SCRATCH, data)[0] == 0
    before = (tmp_path / "workdir" / "metrics.jsonl").read_text()
    code, out, _ = command(*SCRATCH, data)
    assert code == 0 and "This run is finished" in out
    assert (tmp_path / "workdir" / "metrics.jsonl").read_text() == before


def test_workdir_defaults_to_runs_config_and_time(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(f"--config={ROOT}/configs/scratch.py", *SMALL, data, "--config.train.steps=1", workdir=None)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0 and re.fullmatch(r"scratch-\d{8}-\d{6}", folder.name) and f"train in runs/{folder.name}" in out
    assert (folder / "config.json").is_file()
    assert "\ncorpus demo; transformer of 1 layers, width 16; 1 steps; set by the corpus: nothing\n" in out


def test_a_dry_run_tells_and_makes_nothing(command, data, tmp_path):
    code, out, _ = command(*SCRATCH, data, "--dry_run")
    assert code == 0 and not (tmp_path / "workdir").exists()
    assert "\n  train.steps = 6\n" in out and "\ntrains 1 x training of 6 steps of 8 x 8 s\n" in out
    assert out.strip().splitlines()[-1].startswith("ESTIMATE")


@pytest.mark.parametrize("name", ["--config=configs/pretrain.py:demo", "--config=configs/pretrain.py"])
def test_flags_win_over_the_corpus_and_the_corpus_over_the_file(name, command, data):
    code, out, err = command(name, "--config.data.corpus=demo", data, "--config.model.layers=3", "--config.train.steps=2000", "--dry_run")
    assert code == 0 and err == ""
    for line in ("model.width = 32", "model.layers = 3", "train.steps = 2000", "train.eval_every = 150", "objective.span = 0.32"):
        assert f"\n  {line}\n" in out
    assert "set by the corpus: " in out and "model.layers" not in out.splitlines()[0]


def test_a_field_that_nothing_reads_is_told(command, data):
    code, _, err = command(*SCRATCH, data, "--config.train.strategy=full", "--dry_run")
    assert code == 0 and err == "notice: train.probe_steps is given, but nothing reads it: train.strategy is full.\n"


@pytest.mark.parametrize("separate", [True, False])
def test_configs_are_found_from_anywhere_with_those_that_they_build_on(separate, command, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder in ("here", "there"):  # both have an experiment of that name; the one beside the config counts
        (tmp_path / folder / "ideas").mkdir(parents=True)
        (tmp_path / folder / "ideas" / "base.py").write_text(
            f"from configs import scratch\ndef get_config():\n  c = scratch.get_config()\n  c.seed = {len(folder)}\n  return c"
        )
    file = tmp_path / "there" / "ideas" / "mine.py"
    file.write_text("from ideas import base\nget_config = base.get_config")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    for name in [name for name in sys.modules if name.split(".")[0] == "ideas"]:
        monkeypatch.delitem(sys.modules, name)
    code, out, _ = command(*([f"--config={file}"] if separate else ["--config", file]), data, "--dry_run")
    assert code == 0 and "\n  seed = 5\n" in out


def test_help_lists_flags_and_examples():
    done = in_process("--help")
    assert all(word in done.stdout for word in ("--config=configs/quickstart.py", "--[no]dry_run", "--[no]insist", "--workdir", "ravdess"))
    assert "Traceback" not in done.stderr


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No config is given: name one with --config=configs/quickstart.py"),
        (["--config=configs/nowhere.py"], "'configs/nowhere.py'): name one of the files in configs"),
        (["--config=README.md"], "The config cannot be loaded"),
        (["--config=tests/make_corpus.py"], "--config names a file without a get_config() that makes a config"),
        (["--config=configs/scratch.py", "seed=3"], "The argument 'seed=3' is not understood: fields are set with --config.FIELD=VALUE"),
        (
            ["--config=configs/scratch.py", "--config.learning_rate=1"],
            "There is no config field config.learning_rate: the config file lists",
        ),
        (["--config=configs/scratch.py", "--config.train.stepps=1"], 'no config field config.train.stepps (did you mean "steps"?): the'),
        (["--config=configs/scratch.py", "--config.trian.steps=1"], 'no config field config.trian.steps (did you mean "train"?): the'),
        (["--config=configs/quickstart.py", "--config.finetune.train.strategy=full"], "no config field config.finetune.train.strategy:"),
        (["--config=configs/quickstart.py", "--config.compare.seed=1"], '(did you mean "seeds"?)'),
        (["--config=configs/scratch.py", "--config.train={'steps': 3}"], "train is a group of fields: set them one by one"),
        (["--config=configs/scratch.py", "--config.seed=many"], "flag --config.seed=many: invalid literal for int() with base 10: 'many':"),
        (
            ["--config=configs/scratch.py", "--speed=3"],
            "Unknown command line flag 'speed': the config file lists its fields, --help the flags",
        ),
        (["--config=configs/scratch.py", "--config.task=sing"], "task is 'sing': choose one of compare, evaluate, train"),
        (
            ["--config=configs/scratch.py:klingon"],
            "'klingon' is no known corpus: choose one of demo, mosei, nemo, ravdess, or give data.features",
        ),
        (["--config=configs/scratch.py", "--config.data.prepared=/nowhere"], "/nowhere is not a prepared corpus: make one with"),
        (["--config=configs/finetune.py"], "init_from is not given: name the workdir of a pretraining with --config.init_from=DIR"),
        (["--config=configs/evaluate.py"], "init_from is not given: name the workdir of a finished run with --config.init_from=DIR"),
        (
            ["--config=configs/evaluate.py", "--config.init_from=/nowhere"],
            "init_from is '/nowhere', which holds no checkpoint: give the workdir",
        ),
        (["--config=configs/evaluate.py", "--config.init_from="], "init_from is not given: name the workdir of a finished run with"),
        (["--config=configs/evaluate.py", "--config.fold=dev"], "fold is 'dev': choose one of train, valid, test"),
        (["--config=configs/quickstart.py", "--config.data.prepared=p", "--config.data.folds=a.json,b.json"], "data.folds is given beside"),
        (["--config=configs/scratch.py", "--config.data.features=F.csd"], "data.features is given without data.labels and data.folds"),
        (["--config=configs/scratch.py", "--config.data.folds=a.json,b.json"], "a run alone takes one file of folds"),
    ],
)
def test_bad_commands(arguments, message, refused):
    assert message in refused(*arguments)


@pytest.mark.parametrize("field", ["features", "labels", "folds"])
def test_a_missing_file_is_named(field, refused, files, tmp_path):
    line = refused(*SCRATCH, *files(**{field: tmp_path / "missing"}))
    assert f"{tmp_path}/missing does not exist or is not a file" in line and "data." in line


def test_missing_words_are_named(refused, files, tmp_path):
    assert f"{tmp_path}/words.csd does not exist" in refused(*SCRATCH, *files(), f"--config.data.words={tmp_path}/words.csd")


@pytest.mark.parametrize("field", ["features", "labels"])
@pytest.mark.parametrize("content", [b"", b"these are no features", "truncated"], ids=["empty", "text", "truncated"])
def test_an_unreadable_file_is_named(field, content, refused, files, demo_files, tmp_path):
    if content == "truncated":
        whole = (demo_files / ("DEMO_COVAREP.csd" if field == "features" else "DEMO_Labels.csd")).read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / "broken.csd").write_bytes(content)
    line = refused(*SCRATCH, *files(**{field: tmp_path / "broken.csd"}))
    assert f"{tmp_path}/broken.csd" in line and "fetch or write it anew" in line


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{'train'"])
def test_unreadable_folds_are_named(text, refused, files, tmp_path):
    (tmp_path / "folds.json").write_text(text)
    assert f"{tmp_path}/folds.json" in refused(*SCRATCH, *files(folds=tmp_path / "folds.json"))


def test_folds_other_than_train_valid_and_test_are_refused(refused, files, folds):
    assert "must hold exactly the folds train, valid and test" in refused(*SCRATCH, *files(folds=folds(dev=["a"])))
    assert "must hold exactly the folds train, valid and test" in refused(*SCRATCH, *files(folds=folds(valid=None)))


@pytest.mark.parametrize("fold", ["train", "valid", "test"])
def test_a_fold_without_a_labelled_segment_is_named(fold, refused, files, folds):
    for ids in ([], ["unknown"]):
        assert f"has no labelled segment with frames in fold '{fold}'" in refused(*SCRATCH, *files(folds=folds(**{fold: ids})))


def test_more_labels_than_there_are_segments_are_refused(refused, data):
    line = refused(*SCRATCH, data, "--config.num_labels=37")
    assert "num_labels is 37, but the training fold has 36 labelled segments: give 0 (all) to 36" in line


@pytest.mark.parametrize("arguments", [FINETUNE, ["--config=configs/evaluate.py"]], ids=["finetune", "evaluate"])
def test_features_of_another_dimension_than_the_checkpoints_are_refused(arguments, refused, files, finetuning, demo_files, tmp_path):
    five = rewrite(demo_files / "DEMO_COVAREP.csd", tmp_path / "five.csd", lambda x: x[:, :5], metadata={})
    line = refused(*arguments, *files(features=five), f"--config.init_from={finetuning}")
    assert f"{finetuning} has 74 features, the corpus has 5: use corpora with the same features" in line


def test_features_of_other_names_than_the_checkpoints_are_refused(refused, files, pretraining, demo_files, tmp_path):
    names = [f"feature_{i}" for i in range(74)]
    other = rewrite(demo_files / "DEMO_COVAREP.csd", tmp_path / "other.csd", lambda x: x, metadata={"dimension names": names})
    assert "has the feature 'F0' where the corpus has 'feature_0'" in refused(
        *FINETUNE, *files(features=other), f"--config.init_from={pretraining}"
    )


@pytest.mark.parametrize(
    "names", [["joy", "sad", "anger", "surprise", "disgust", "fear"], ["sad", "happy", "anger", "surprise", "disgust", "fear"]]
)
def test_emotions_other_than_the_runs_are_refused(names, refused, files, finetuning, demo_files, tmp_path):
    labels = rewrite(demo_files / "DEMO_Labels.csd", tmp_path / "labels.csd", lambda x: x, metadata={"dimension names": names})
    line = refused("--config=configs/evaluate.py", *files(labels=labels), f"--config.init_from={finetuning}")
    assert "disagree on the emotion" in line and "evaluate on labels with happy, sad, anger, surprise, disgust, fear" in line


def test_label_columns_must_be_named(refused, files, demo_files, tmp_path):
    unnamed = rewrite(demo_files / "DEMO_Labels.csd", tmp_path / "labels.csd", lambda x: x, metadata={})
    line = refused(*SCRATCH, *files(labels=unnamed))
    assert f"{unnamed} does not name its 6 label columns" in line and "data.label_names" in line
    assert "6 different names are needed, not happy, sad" in refused(
        *SCRATCH, *files(labels=unnamed), "--config.data.label_names=happy,sad", workdir=tmp_path / "other"
    )


@pytest.mark.parametrize("what", ["nothing", "no checkpoints", "no complete checkpoint"])
def test_init_from_without_a_checkpoint_is_refused(what, refused, data, pretraining, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    if what != "nothing":
        shutil.copy(pretraining / "card.json", source)
    if what == "no complete checkpoint":
        (source / "checkpoints").mkdir()
    line = refused(*FINETUNE, data, f"--config.init_from={source}")
    assert str(source) in line and "holds no" in line and ("give the workdir" in line or "run its training first" in line)


@pytest.mark.parametrize("size", [0, -8])
def test_a_batch_of_no_size_is_refused(size, refused, data):
    line = refused(*SCRATCH, data, f"--config.train.batch_size={size}")
    assert f"train.batch_size is {size}, but must lie between 1 and" in line


def test_a_workdir_of_another_run_is_refused(refused, data, pretraining):
    line = refused(*PRETRAIN, data, "--config.seed=5", workdir=pretraining)
    assert f"{pretraining} belongs to a run whose config differs in seed: give another --workdir" in line


def test_a_workdir_that_is_a_file_is_refused(refused, data, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file cannot be written" in refused(*SCRATCH, data, workdir=tmp_path / "file")


def test_a_corpus_of_the_users_own_without_its_folder_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.delenv("EMOSSL_DATA", raising=False)
    assert "EMOSSL_DATA is not set: set it to the folder of your corpora" in refused("--config=configs/scratch.py:nemo")
    monkeypatch.setenv("EMOSSL_DATA", str(tmp_path))
    assert f"{tmp_path}/mosei/CMU_MOSEI_COVAREP.csd does not exist" in refused(
        "--config=configs/scratch.py:mosei", workdir=tmp_path / "other"
    )


# In processes of their own


def in_process(*arguments, devices=1, **options):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "jax_emossl.main", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)


def test_two_devices_give_what_one_gives(data, tmp_path, pretraining):
    done = in_process(*PRETRAIN, data, f"--workdir={tmp_path}", devices=2)
    assert done.returncode == 0, done.stderr
    rows = [[json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (pretraining, tmp_path)]
    assert len(rows[0]) == len(rows[1]) == 5
    for one, two in zip(*rows, strict=True):
        norms = [row.pop("train/gradient_norm", 1.0) for row in (one, two)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)  # rounding may turn the sign of an L1 error, all of whose gradient that is
        assert one == pytest.approx(two, rel=1e-3)
    one, two = ([row["metrics"]["loss"] for row in json.loads((f / "results.json").read_text())["runs"]] for f in (pretraining, tmp_path))
    np.testing.assert_allclose(one, two, rtol=1e-3)
    best = checkpoint.load_best(tmp_path)  # on the one device here
    assert best.step == checkpoint.load_best(pretraining).step
    assert isinstance(best.variables["params"]["encoder"]["mask_embedding"], np.ndarray)


def test_a_batch_that_two_devices_cannot_share_ends_with_one_sentence(data, tmp_path):
    done = in_process(*SCRATCH, data, "--config.train.batch_size=7", f"--workdir={tmp_path}", devices=2)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: train.batch_size is 7, but must be a positive multiple of the 2 devices."
