"""A run of the command line in a process of its own, and what its workdir tells about where it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT, TINY

from jax_emossl import checkpoint, memory

# Steps in all and to an evaluation, so that a good part of the time between two checkpoints is training.
STEPS = {"pretrain": (600, 50), "finetune": (240, 20)}
QUICK = "quick"
PATIENCE = 300  # seconds after which a process is taken to hang


def _arguments(config, **fields):
    return [f"--config={ROOT / 'configs' / config}.py", *(f"--config.{field}={value}" for field, value in fields.items())]


def _long(config, **fields):
    steps, every = STEPS[config]
    return _arguments(config, **TINY | {"train.steps": steps, "train.eval_every": every, "train.log_every": every // 4} | fields)


_PRETRAIN = {"train.crop": 2.56, "objective.span": 0.64}
ARGUMENTS = {
    "pretrain": _long("pretrain", **_PRETRAIN),
    "finetune": _long("finetune", **{"train.probe_steps": 100}),
    "evaluate": _arguments("evaluate"),
    QUICK: _arguments("pretrain", **TINY | _PRETRAIN),
}


def outcome(workdir):
    """All that a run leaves and that is to be the same: the files' bytes, the best step with its variables, and what was calibrated there."""
    best = checkpoint.load_best(workdir) if steps(workdir) else checkpoint.Best(None, {}, None)
    names = [name for name in ("metrics.jsonl", "results.json", "card.json") if (workdir / name).exists()]
    kept = {name: (workdir / name).read_bytes() for name in names}
    return kept | {"best": (best.step, checkpoint.digest(best.variables), best.calibration)}


def steps(workdir):
    """Steps of the checkpoints that are complete."""
    return {int(name) for name in _checkpoints(workdir) if name.isdecimal()}


def _checkpoints(workdir):
    try:
        return os.listdir(workdir / checkpoint.FOLDER)
    except FileNotFoundError:
        return []


class Run:
    """A run in `folder`/run. Its command names no other folder than that, so that its results can be compared byte by byte."""

    def __init__(self, folder, arguments):
        self.folder, self.workdir, self.arguments = Path(folder), Path(folder) / "run", arguments

    @property
    def command(self):
        return [sys.executable, "-m", "jax_emossl.main", *self.arguments, "--workdir=run"]

    @property
    def environment(self):
        return os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": memory._TUNABLES}  # else it would start twice

    def start(self):
        return subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def finish(self, command=None):
        return subprocess.run(
            command or self.command, cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=PATIENCE
        )

    def steps(self):
        return steps(self.workdir)

    def saving(self):
        return any("tmp" in name for name in _checkpoints(self.workdir))

    def training(self, process):
        """Whether this process has come to its training: it has a log of its own."""
        return any(self.workdir.glob(f"events.out.tfevents.*.{process.pid}"))

    def phase(self, process, last):
        """Where a process was when it ended, `last` being the last step."""
        if (self.workdir / "results.json").exists():
            return "done"
        if not self.training(process):
            return "start-up"
        if self.saving():
            return "saving"
        return "final evaluation" if last in self.steps() else "training"


def wait(process, until, delay=0.0):
    """Waits until something is so and `delay` seconds more; False where the process has ended before."""
    start = time.monotonic()
    while not until():
        if process.poll() is not None:
            return False
        assert time.monotonic() - start < PATIENCE, "the process hangs"
        time.sleep(0.001)
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        return True


def end(process, with_=signal.SIGKILL):
    """Sends a signal; returns the exit code and what was written to standard error."""
    process.send_signal(with_)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def sentence(done):
    """The one sentence with which a command is to end that cannot do what it is asked."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("notice: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith("."), done.stderr
    return lines[0]
