"""Asked to stop (SIGTERM), a run saves its step and ends with 75; and a workdir in use is left alone."""

import random
import signal

import pytest

from faults.processes import end, sentence, wait
from jax_emossl import preemption


@pytest.mark.parametrize(
    ("name", "signals"), [("pretrain", (signal.SIGTERM, signal.SIGTERM)), ("finetune", (signal.SIGTERM, signal.SIGINT))]
)
def test_a_run_that_is_asked_to_stop_goes_on_later(name, signals, again, identical, tally, tmp_path):
    run, rng = again(name, tmp_path), random.Random(len(name))
    for number in signals:
        process, before = run.start(), max(run.steps(), default=0)
        assert wait(process, lambda process=process: run.training(process), rng.uniform(0.2, 1))
        code, err = end(process, number)
        assert code == preemption.EXIT_CODE == 75
        assert err.strip().splitlines()[-1] == "Stopped on request: run the same command again to go on."
        assert max(run.steps()) > before and not run.saving()
        tally["stops by SIGTERM or SIGINT, exit code 75"] += 1
    done = run.finish()
    assert done.returncode == 0, done.stderr
    identical(run, name)


def test_an_evaluation_that_is_asked_to_stop_leaves_nothing_half_written(again, identical, tally, tmp_path):
    run = again("evaluate", tmp_path)
    process = run.start()
    assert process.stdout.readline().startswith("evaluate in ")
    code, err = end(process, signal.SIGTERM)
    assert code == 75 and "Traceback" not in err
    assert {path.name for path in run.workdir.iterdir()} == {".lock", "config.json"}
    tally["stops by SIGTERM or SIGINT, exit code 75"] += 1
    assert run.finish().returncode == 0
    identical(run, "evaluate")


def test_a_second_process_on_the_workdir_is_refused_and_the_first_unharmed(again, identical, tally, tmp_path):
    run = again("pretrain", tmp_path)
    first = run.start()
    assert wait(first, (run.workdir / "config.json").exists)
    assert "run is in use by another process: wait for it to end, or give another --workdir." in sentence(run.finish())
    assert first.poll() is None, "the first process was too quick to be disturbed"
    assert first.communicate() and first.returncode == 0
    tally["second processes refused"] += 1
    identical(run, "pretrain")
