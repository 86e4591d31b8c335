"""Killed at any moment (SIGKILL: no handler runs, nothing is flushed), a run goes on and ends as if nothing had happened."""

import random
import signal

import pytest

from faults.processes import STEPS, end, wait

_PLAN = ("anywhere", "training", "saving", "training", "saving", "training", "final evaluation")


def kill(run, moment, last, rng):
    """Starts a process and kills it at a moment of that kind; returns where it was, None where it was done before."""
    process, before = run.start(), max(run.steps(), default=0)
    reached, delay = {
        "anywhere": (lambda: True, rng.uniform(1, 3)),
        "training": (lambda: run.training(process) and not run.saving() and max(run.steps(), default=0) > before, rng.uniform(0, 0.3)),
        "saving": (lambda: run.training(process) and run.saving(), rng.uniform(0, 0.2)),
        "final evaluation": (lambda: run.training(process) and last in run.steps() and not run.saving(), rng.uniform(0, 0.1)),
    }[moment]
    wait(process, reached, delay)
    code, _ = end(process)
    return run.phase(process, last) if code == -signal.SIGKILL else None


@pytest.mark.parametrize(("seed", "name"), enumerate(["pretrain", "finetune"]))
def test_a_run_that_is_killed_again_and_again_ends_the_same(seed, name, again, identical, tally, tmp_path):
    run, rng, last = again(name, tmp_path), random.Random(seed), STEPS[name][0]
    survived = 0
    for moment in _PLAN:
        phase = kill(run, moment, last, rng)
        if phase is None:
            break
        tally[f"kills survived, {phase}"] += 1
        survived += 1
    done = run.finish()
    assert done.returncode == 0, done.stderr
    assert survived >= 6
    identical(run, name)


def test_an_evaluation_that_is_killed_leaves_nothing_and_gives_the_same_when_run_again(again, identical, tally, tmp_path):
    run, rng = again("evaluate", tmp_path), random.Random(0)
    for _ in range(2):
        process = run.start()
        wait(process, (run.workdir / "config.json").exists, rng.uniform(0, 0.8))
        assert end(process)[0] == -signal.SIGKILL
        assert not (run.workdir / "results.json").exists()
        tally["kills survived, evaluating a finished run"] += 1
    assert run.finish().returncode == 0
    identical(run, "evaluate")
