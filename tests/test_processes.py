"""Several processes train as one: the same numbers, one workdir, and one end, however any of them ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, same
from faults.processes import ARGUMENTS, QUICK, Run, outcome, wait

from configs import quickstart
from jax_emossl import memory, processes, results
from jax_emossl.config import flat

STEPS = {"train.steps": 12, "train.eval_every": 4, "train.log_every": 2}
SMOOTH = {"objective.loss": "l2"}  # of a pretraining: rounding may turn the sign of an L1 error


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """Two processes on loopback, with two devices each, and a folder each: the first one's is the only one to fill up."""

    def __init__(self, folder, arguments):
        self.folders, self.arguments = [folder / "first", folder / "second"], arguments
        for own in self.folders:
            own.mkdir(parents=True)
        self.run = Run(self.folders[0], arguments)

    def start(self, *of_second, within=()):
        """Starts both, the second with further arguments, the first `within` another command."""
        together = ["--num_processes=2", f"--coordinator=127.0.0.1:{free_port()}"]
        return [
            subprocess.Popen(
                [*(() if i else within), *self.run.command, *together, f"--process_id={i}", *(of_second if i else ())],
                cwd=own,
                env=environment(2),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
            for i, own in enumerate(self.folders)
        ]

    def finish(self, *of_second):
        return ended(self.start(*of_second))

    def outcome(self):
        """What is to be the same whenever the run is; the command names a port."""
        made = outcome(self.run.workdir)
        return made | {"results.json": json.loads(made["results.json"]) | {"command": ""}}


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "GLIBC_TUNABLES": memory._TUNABLES}  # else each would start twice


def ended(started):
    """Exit code, output and errors of each."""
    said = [process.communicate(timeout=240) for process in started]
    return [(process.returncode, *own) for process, own in zip(started, said, strict=True)]


def sentences(ends):
    """How all of them say what is wrong."""
    assert [code for code, *_ in ends] == [2, 2], ends
    return [line for _, _, err in ends for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def arguments(demo_folder):
    fields = STEPS | SMOOTH
    return [*ARGUMENTS[QUICK], *(f"--config.{name}={value}" for name, value in fields.items()), f"--config.data.prepared={demo_folder}"]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """A run of two processes that nothing interrupted."""
    made = Processes(tmp_path_factory.mktemp("two"), arguments)
    assert [code for code, *_ in made.finish()] == [0, 0]
    return made


@pytest.fixture
def again(arguments, tmp_path):
    return Processes(tmp_path / "again", arguments)


def test_two_processes_learn_what_one_does_on_as_many_devices(whole, arguments, tmp_path):
    alone = Run(tmp_path, arguments)
    subprocess.run(alone.command, cwd=tmp_path, env=environment(4), check=True, capture_output=True)
    logs = [[json.loads(row) for row in (run.workdir / "metrics.jsonl").read_text().splitlines()] for run in (whole.run, alone)]
    assert len(logs[0]) == 12 // 2 + 12 // 4
    for own, other in zip(*logs, strict=True):
        assert own.keys() == other.keys()
        np.testing.assert_allclose(list(own.values()), list(other.values()), rtol=1e-3)


def test_only_the_first_writes_and_another_number_of_processes_goes_on(whole, arguments, tmp_path):
    """A finished run says so in all processes; a checkpoint of two is resumed by one."""
    assert not any(whole.folders[1].iterdir())
    (code, said, _), (other, silence, _) = whole.finish()
    assert (code, other) == (0, 0)
    assert "This run is finished." in said and "finished" not in silence
    shutil.copytree(whole.run.workdir, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    alone = Run(tmp_path, arguments)
    subprocess.run(alone.command, cwd=tmp_path, env=environment(2), check=True, capture_output=True)
    assert outcome(alone.workdir)["best"] == whole.outcome()["best"]


def test_fine_tuning_and_evaluation_are_those_of_one_process(whole, demo_folder, tmp_path):
    fields = [*ARGUMENTS["finetune"], *(f"--config.{name}={value}" for name, value in STEPS.items()), "--config.train.probe_steps=4"]
    tuned = Processes(tmp_path / "tuned", [*fields, f"--config.data.prepared={demo_folder}", f"--config.init_from={whole.run.workdir}"])
    assert [code for code, *_ in tuned.finish()] == [0, 0]
    (wanted,) = [row["metrics"] for row in rows(tuned.run) if row["fold"] == "test" and row["arm"] == "pretrained"]
    evaluate = [*ARGUMENTS["evaluate"], f"--config.init_from={tuned.run.workdir}", "--config.fold=test"]
    two, one = Processes(tmp_path / "two", evaluate), Run(tmp_path, evaluate)
    assert [code for code, *_ in two.finish()] == [0, 0]
    subprocess.run(one.command, cwd=tmp_path, env=environment(4), check=True, capture_output=True)
    assert rows(two.run)[0]["metrics"] == wanted
    for name, value in wanted.items():
        assert name == "per_emotion" or rows(one)[0]["metrics"][name] == pytest.approx(value, rel=1e-4)


def rows(run):
    return results.read(run.workdir / "results.json")["runs"]


def test_when_one_is_killed_the_other_ends_and_all_go_on_bit_by_bit(whole, again):
    first, second = again.start()
    assert wait(second, lambda: 4 in again.run.steps())
    second.kill()
    (code, _, err), _ = ended([first, second])
    assert code not in (0, 2, 75), err
    assert not (again.run.workdir / "results.json").exists()
    assert [code for code, *_ in again.finish()] == [0, 0]
    assert again.outcome() == whole.outcome()


def test_a_signal_to_one_stops_all_at_one_step_and_all_go_on_bit_by_bit(whole, again):
    first, second = again.start()
    assert wait(second, lambda: 4 in again.run.steps())
    second.send_signal(signal.SIGTERM)
    ends = ended([first, second])
    assert [code for code, *_ in ends] == [75, 75], ends
    assert all("Stopped on request" in err and "Traceback" not in err for _, _, err in ends)
    assert [code for code, *_ in again.finish()] == [0, 0]
    assert again.outcome() == whole.outcome()


@pytest.mark.parametrize(
    ("of_second", "named"),
    [
        (["--config.seed=1", "--config.train.warmup_steps=3"], "seed, train.warmup_steps"),
        (["--config.data.prepared=other"], "data.prepared"),
    ],
)
def test_processes_that_were_asked_different_things_are_refused(again, of_second, named):
    sentence = f"error: Process 1 differs from process 0 in {named}: start all with the same command, code and data."
    assert sentences(again.finish(*of_second)) == [sentence, sentence]
    assert not again.run.workdir.exists()


def test_other_data_under_the_same_name_are_refused(arguments, demo_folder, tmp_path):
    """Each process reads its own machine's file system."""
    two = Processes(tmp_path, [*arguments, "--config.data.prepared=corpus"])
    for own in two.folders:
        shutil.copytree(demo_folder, own / "corpus")
    labels = two.folders[1] / "corpus" / "train" / "labels.npy"
    changed = np.load(labels)
    changed[0] = 3 - changed[0]
    np.save(labels, changed)
    sentence = "error: Process 1 differs from process 0 in the corpus demo: start all with the same command, code and data."
    assert sentences(two.finish()) == [sentence, sentence]


def test_a_mistake_that_one_finds_ends_all(again):
    again.run.workdir.write_text("not a folder")
    sentence = "error: Process 0: run cannot be written (File exists): give another --workdir."
    assert sentences(again.finish()) == [sentence, sentence]


def test_a_disk_that_is_full_ends_all(again):
    first, second = ended(again.start(within=["sh", "-c", 'ulimit -f 64; exec "$@"', "sh"]))
    assert first[0] == 2 and "error: A checkpoint in run cannot be saved" in first[2]
    assert second[0] not in (0, 2, 75)  # 75 would have a queue start it anew for ever


@pytest.fixture(scope="module")
def comparing(demo_folder):
    """Arguments of a comparison whose six trainings do not share out evenly over four devices."""
    known = flat(quickstart.get_config().to_dict())
    tiny = {f"{part}{name}": value for name, value in TINY.items() for part in ("", "pretrain.", "finetune.")}
    fields = {
        **{name: value for name, value in tiny.items() if name in known},
        "data.prepared": demo_folder, "pretrain.train.crop": 2.56, "pretrain.objective.span": 0.64,
        "finetune.train.steps": 24, "finetune.train.epochs": 0, "finetune.train.eval_every": 8, "compare.seeds": 3,
        "compare.label_counts": "(12,)", "compare.learning_rates": "(3e-3,)", "compare.strategies": "('linear', 'full')",
        "compare.arms": "('pretrained', 'scratch', 'frozen')",
    }  # fmt: skip
    return [f"--config={ROOT / 'configs' / 'quickstart.py'}", *(f"--config.{name}={value}" for name, value in fields.items())]


@pytest.fixture(scope="module")
def compared(comparing, tmp_path_factory):
    """A comparison of two processes that nothing interrupted."""
    made = Processes(tmp_path_factory.mktemp("compared"), comparing)
    ends = made.finish()
    assert [code for code, *_ in ends] == [0, 0], ends
    return made


def answered(run):
    """Rows without what names the run, and what was predicted."""
    return rows(run), {row["predictions"]: results.load_arrays(run.workdir / row["predictions"]) for row in rows(run) if "classes" in row}


def test_two_processes_compare_as_one_does_on_as_many_devices(compared, comparing, tmp_path):
    alone = Run(tmp_path, comparing)
    subprocess.run(alone.command, cwd=tmp_path, env=environment(4), check=True, capture_output=True)
    assert not any(compared.folders[1].iterdir()) and (compared.run.workdir / "report.html").exists()
    for own, other in zip(rows(compared.run), rows(alone), strict=True):
        assert [own[name] for name in ("arm", "budget", "seed", "step")] == [other[name] for name in ("arm", "budget", "seed", "step")]
        assert own["metrics"]["mae"] == pytest.approx(other["metrics"]["mae"], rel=1e-2)
        assert own["metrics"]["auroc"] == pytest.approx(other["metrics"]["auroc"], abs=0.02)


def test_a_comparison_that_a_signal_to_one_stops_goes_on_bit_by_bit(compared, comparing, tmp_path):
    again = Processes(tmp_path, comparing)
    first, second = again.start()
    assert wait(second, lambda: [*again.run.workdir.glob("in_progress/*/checkpoints/8")])
    second.send_signal(signal.SIGTERM)
    ends = ended([first, second])
    assert [code for code, *_ in ends] == [75, 75], ends
    assert {row["arm"] for row in rows(again.run)} == {"constant", "frozen"}
    assert [code for code, *_ in again.finish()] == [0, 0]
    (own, said), (wanted, expected) = answered(again.run), answered(compared.run)
    assert own == wanted
    same(said, expected)


def join(*arguments):
    script = f"from jax_emossl import processes, errors\nprocesses._PATIENCE = 2\nwith errors.one_sentence(): processes.join(*{arguments})"
    done = subprocess.run([sys.executable, "-c", script], env=environment(1), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.parametrize("process", [0, 1])
def test_who_waits_for_the_others_in_vain_says_so(process):
    address = f"127.0.0.1:{free_port()}"
    assert join(address, 2, process) == (
        f"error: Process {process} waited 2 s for the coordinator {address} and all 2 processes: "
        "start every one of them, at an address of process 0 that all can reach.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((None, 2, 0), "Several processes need --coordinator=HOST:PORT, --num_processes and --process_id, all three or none of them."),
        (("host:1", 2, 2), "--process_id is 2, but the 2 processes of --num_processes are counted from 0."),
        (("host", 2, 1), "--coordinator is 'host', but must be HOST:PORT, an address of process 0 that all others can reach."),
    ],
)
def test_flags_that_make_no_processes_are_refused(arguments, sentence):
    assert join(*arguments) == f"error: {sentence}\n"


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert join(address, 2, 0) == f"error: Process 0 cannot open the port of {address}: give one that is free.\n"


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


def test_a_cluster_that_jax_knows_needs_no_flags(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert "error: Process 1 waited 2 s for the coordinator localhost:61447 and all 2 processes" in join(None, None, None)


@pytest.mark.parametrize(("tasks", "number"), [("1", None), ("2", 1)])
def test_one_process_stays_alone_in_a_cluster(tasks, number, monkeypatch):
    """Where the cluster has no more, or the flag says so; a task of SLURM's would else lose all but one of its accelerators."""
    for name, value in (SLURM | {"SLURM_NTASKS": tasks}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_connect", lambda *_: pytest.fail("it looked for others"))
    processes.join(None, number, None)
    assert not processes.several() and processes.first() and processes.part() == (0, 1)
