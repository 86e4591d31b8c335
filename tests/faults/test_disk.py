"""A disk that is full, and one that cannot be written: one sentence, and what was saved stands."""

import os
import shutil
import subprocess

import pytest

from faults.processes import PATIENCE, QUICK, Run, sentence
from jax_emossl import checkpoint


@pytest.fixture
def halfway(unfinished):
    """The quick run as it was after its checkpoint of step 4."""
    shutil.rmtree(unfinished.workdir / checkpoint.FOLDER / "6")
    return unfinished


@pytest.fixture
def mounted(halfway):
    """Runs a shell script in which `mount` works, mounts ending with it, and `run` is the command of the halfway run."""
    own = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*own, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("this system lets no process have mounts of its own (unshare --mount --map-root-user)")

    def script(text):
        define = 'run() { code=0; "$@" > "$name.out" 2> "$name.err" || code=$?; echo $code > "$name.code"; }\nset -e\n'
        command = [*own, "sh", "-c", define + text.replace("RUN", 'run "$@"'), "sh", *halfway.command]
        subprocess.run(command, cwd=halfway.folder, env=halfway.environment, check=True, timeout=PATIENCE)
        return lambda name: subprocess.CompletedProcess(
            halfway.command,
            int((halfway.folder / f"{name}.code").read_text()),
            (halfway.folder / f"{name}.out").read_text(),
            (halfway.folder / f"{name}.err").read_text(),
        )

    return script


def test_a_full_disk_costs_nothing_that_was_saved(mounted, halfway, identical, tally):
    ended = mounted("""
        cp -r run copy
        size() { du -sk "$1" | cut -f1; }
        mount -t tmpfs -o size=$(($(size copy) + $(size copy/checkpoints/4) / 2))k none run; cp -r copy/. run
        name=full; RUN; ls run/checkpoints > left
        mount -o remount,size=64m run
        name=spacious; RUN; rm -r copy; cp -r run copy
    """)
    line = sentence(ended("full"))
    assert "A checkpoint in run cannot be saved" in line and "free some space there and run the same command again" in line
    assert "4" in (halfway.folder / "left").read_text().split()
    assert ended("spacious").returncode == 0
    shutil.rmtree(halfway.workdir)
    os.rename(halfway.folder / "copy", halfway.workdir)
    tally["full disks survived"] += 1
    identical(halfway, QUICK)


def test_a_checkpoint_that_may_not_be_so_large_is_the_same(halfway, identical, tally):
    limited = ["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", *halfway.command]  # blocks of 512 or 1,024 bytes
    line = sentence(halfway.finish(limited))
    assert "A checkpoint in run cannot be saved" in line
    assert 4 in halfway.steps() and 6 not in halfway.steps()
    assert halfway.finish().returncode == 0
    tally["full disks survived"] += 1
    identical(halfway, QUICK)


def test_a_workdir_that_is_read_only_is_refused_and_stays(mounted, halfway, identical, tally):
    before = {path: path.read_bytes() for path in halfway.workdir.rglob("*") if path.is_file()}
    ended = mounted("""
        mount --bind run run; mount -o remount,ro,bind run
        name=refused; RUN
    """)
    assert sentence(ended("refused")) == "error: run cannot be written (Read-only file system): give another --workdir."
    assert before == {path: path.read_bytes() for path in halfway.workdir.rglob("*") if path.is_file()}
    tally["read-only workdirs refused"] += 1
    assert halfway.finish().returncode == 0
    identical(halfway, QUICK)


def test_a_workdir_below_a_file_is_refused(whole, tally, tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file", whole(QUICK).arguments)
    run.folder = tmp_path
    done = run.finish([*run.command, f"--workdir={run.workdir}"])
    assert sentence(done) == f"error: {run.workdir} cannot be written (Not a directory): give another --workdir."
    tally["read-only workdirs refused"] += 1
