"""A made-up comparison with categories: two rotations of four recordings, two arms, three label counts, two seeds."""

import json
import shutil
from pathlib import Path

import numpy as np

from jax_emossl import results

CLASSES = ["neutral", "happy", "sad"]


def write(out):
    """Its results.json and predictions, in `out`."""
    rng = np.random.default_rng(0)
    rows = []
    for rotation in ("a", "b"):
        target = rng.integers(0, 3, 90)
        names = np.array([f"{rotation}{i}" for i in np.sort(np.arange(90) % 4)])
        rows.append({**_common(rotation, "constant", 0, 0), "metrics": {"uar": 1 / 3, "f1_macro": 0.2, "accuracy": 0.3}})
        for arm, skill in (("pretrained", 1.5), ("scratch", 0.5)):
            for budget in (30, 60, 0):
                for seed in (0, 1):
                    scores = rng.normal(size=(90, 3)) + (skill + budget / 100 + 1.0 * (budget == 0)) * np.eye(3)[target]
                    name = Path(f"{rotation}-{arm}-{budget}-{seed}")
                    kept = results.keep_predictions(out, name, scores=scores, target=target, recordings=names)
                    chosen = {"fold": "valid", "metric": "uar", "value": 0.5, "strategy": "full", "learning_rate": 1e-3}
                    chosen["evaluations"] = [[[20 * k, 0.5 - 0.1 / k + skill / 10] for k in range(1, 4 - seed)], [[20, 0.4]]]
                    made = {"metrics": {"uar": 0.5}, "selection": chosen, "predictions": kept, "classes": CLASSES}
                    rows.append({**_common(rotation, arm, budget, seed), **made})
    table = {"runs": rows, "config": {"data": {"norm_prior": 180.0}}, "version": "9.9"}
    table["command"] = "python -m jax_emossl.main --config=x.py"
    (out / results.RESULTS_FILE).write_text(json.dumps(table))
    return out


def _common(rotation, arm, budget, seed):
    return {
        "corpus": "demo", "synthetic": True, "arm": arm, "num_labels": budget or 200, "seed": seed, "fold": "test", "step": 1,
        "selection": None, "undefined": {}, "variant": "", "folds": rotation, "budget": budget,
    }  # fmt: skip


def copy(source, out, change):
    """A copy whose table `change(table)` has altered."""
    table = json.loads((source / results.RESULTS_FILE).read_text())
    change(table)
    shutil.copytree(source / results.PREDICTIONS, out / results.PREDICTIONS)
    (out / results.RESULTS_FILE).write_text(json.dumps(table))
    return out


def keep(out, name, **changes):
    """Keeps the predictions `name` anew with some arrays changed."""
    kept = results.load_arrays(out / results.PREDICTIONS / f"{name}.npz")
    results.keep_predictions(out, Path(name), **kept | changes)
