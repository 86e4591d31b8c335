"""Runs in processes of their own, to be killed, starved and damaged; and what they survived, told at the end of the session."""

import shutil
from collections import Counter

import pytest

from faults.processes import ARGUMENTS, QUICK, Run, outcome

_COUNTS = pytest.StashKey[Counter]()


@pytest.fixture(scope="session")
def tally(request):
    """Counts what the faults did, for the summary of the session."""
    return request.config.stash.setdefault(_COUNTS, Counter())


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash.get(_COUNTS, Counter())
    if counts:
        terminalreporter.section("faults")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture(scope="session")
def make_run(demo_folder):
    """Makes a run by the name of its arguments in a folder of its own; it is not started."""

    def make(name, folder, *more):
        return Run(folder, [*ARGUMENTS[name], f"--config.data.prepared={demo_folder}", *map(str, more)])

    return make


@pytest.fixture(scope="session")
def whole(make_run, tmp_path_factory):
    """Uninterrupted runs, each made once; others are compared with them."""
    made = {}

    def run(name):
        if name not in made:
            source = [f"--config.init_from={run('pretrain').workdir}"] if name in ("finetune", "evaluate") else []
            made[name] = make_run(name, tmp_path_factory.mktemp(name), *source)
            done = made[name].finish()
            assert done.returncode == 0, done.stderr
        return made[name]

    return run


@pytest.fixture(scope="session")
def again(make_run, whole):
    """Makes a run like an uninterrupted one, in another folder."""

    def make(name, folder):
        return Run(folder, whole(name).arguments)

    return make


@pytest.fixture
def unfinished(whole, tmp_path):
    """A quick run that has all its checkpoints but no results, as if it had been killed before its end."""
    shutil.copytree(whole(QUICK).workdir, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    return Run(tmp_path, whole(QUICK).arguments)


@pytest.fixture
def identical(whole, tally):
    """Asserts that a run has ended with the bytes and parameters of the uninterrupted one."""

    def check(run, name):
        same = outcome(run.workdir) == outcome(whole(name).workdir)
        tally[f"runs that ended bit-identical to an uninterrupted one: {'yes' if same else 'NO'}"] += 1
        assert same

    return check
