"""README's first command, and what README says of it. `.ci/run` runs this; the plain `pytest` does not, for it takes minutes."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Workdir of the command that follows README's marker, without its installation."""
    block = re.search(r"<!-- quickstart -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    (command,) = [line for line in block.splitlines() if "jax_emossl.main" in line]
    folder = tmp_path_factory.mktemp("first")
    words = command.split()
    words[-1] = f"--workdir={folder / 'run'}"
    words[0] = str(Path(words[0]) if (ROOT / words[0]).exists() else "python")
    as_users_do = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # other tests are compiled in less time, and round otherwise
    subprocess.run(words, cwd=ROOT, check=True, timeout=1800, env=as_users_do)
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run):
    """Mean over seeds by arm, label count and metric."""
    rows = json.loads((run / "results.json").read_text())["runs"]
    own = {}
    for row in rows:
        for name in ("auroc", "mae", "accuracy4"):
            own.setdefault((row["arm"], row["budget"], name), []).append(row["metrics"][name])
    return {key: float(np.mean(values)) for key, values in own.items()}


COUNTS = (30, 120, 0)


def test_pretraining_helps_most_where_labels_are_fewest(scores):
    gains = {count: scores["pretrained", count, "auroc"] - scores["scratch", count, "auroc"] for count in COUNTS}
    assert gains[30] > 0.03 and min(gains.values()) > -0.02, gains


@pytest.mark.parametrize("arm", ["pretrained", "scratch"])
@pytest.mark.parametrize("count", COUNTS)
def test_intensities_never_lose_to_the_constant(scores, arm, count):
    assert scores[arm, count, "mae"] <= scores["constant", 0, "mae"] + 0.005
    assert scores[arm, count, "accuracy4"] >= scores["constant", 0, "accuracy4"] - 0.005


def test_pretraining_reconstructs_what_it_masks(run):
    rows = json.loads((run / "pretrain" / "results.json").read_text())["runs"]
    model, constant = (row["metrics"]["loss"] for row in rows[:2])
    assert model <= 0.93 * constant, (model, constant)


def test_readme_shows_what_the_command_gives(scores):
    kept = json.loads((ROOT / "experiments/results/quickstart.json").read_text())
    for name, table in kept["tables"].items():
        for count, row in zip(COUNTS, table["rows"], strict=True):
            for arm, value in row["arms"].items():
                assert scores[arm, count, name] == pytest.approx(value, abs=0.02), (arm, count, name)
