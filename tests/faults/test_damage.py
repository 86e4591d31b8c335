"""Damage to the newest checkpoint, wherever it is, costs the steps since the one before it and nothing else."""

import shutil

import pytest

from faults.processes import QUICK, outcome, steps
from jax_emossl import checkpoint

STEPS = (4, 6)  # that the quick run keeps


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, share=0.5):
    text = bytearray(file.read_bytes())
    text[int(share * (len(text) - 1))] ^= 0x10
    file.write_bytes(text)


DAMAGE = {
    "variables cut off": lambda folder: truncate(largest(folder / "variables")),
    "optimiser state missing": lambda folder: largest(folder / "opt_state").unlink(),
    "a byte of the variables": lambda folder: flip(largest(folder / "variables"), 0.3),
    "a byte of the optimiser state": lambda folder: flip(largest(folder / "opt_state"), 0.7),
    "a byte of the best variables": lambda folder: flip(largest(folder / "best")),
    "a byte of the progress": lambda folder: flip(folder / "progress" / "metadata"),
    "a byte of the sums": lambda folder: flip(folder / "sha256" / "metadata"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_run_goes_on_from_the_checkpoint_before(damage, tiny_config, trained, pretraining, tally, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(pretraining, run)
    (run / "results.json").unlink()
    assert steps(run) == set(STEPS)
    DAMAGE[damage](run / checkpoint.FOLDER / "6")
    trained(tiny_config("pretrain"), run)
    assert f"the checkpoint of step 6 in {run} is damaged: it is moved to {run}/damaged and not used." in capsys.readouterr().err
    assert [path.name.split("-")[0] for path in (run / checkpoint.DAMAGED_FOLDER).iterdir()] == ["6"]
    tally["damaged checkpoints recovered from"] += 1
    assert outcome(run) == outcome(pretraining)


def test_a_damaged_checkpoint_is_one_sentence(unfinished, identical, tally):
    DAMAGE["variables cut off"](unfinished.workdir / checkpoint.FOLDER / "6")
    done = unfinished.finish()
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 6 in run is damaged: it is moved to run/damaged and not used." in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name.split("-")[0] for path in (unfinished.workdir / checkpoint.DAMAGED_FOLDER).iterdir()] == ["6"]
    tally["damaged checkpoints recovered from"] += 1
    identical(unfinished, QUICK)
