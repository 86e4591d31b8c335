"""`results.json`, the one form in which every run leaves its numbers, and their table for people.

    {"runs": [row, ...], "config": {...}, "command": "python -m ...", "version": "0.1.0", "commit": "1a2b3c4" or null}

One row per run and evaluated fold; README documents its fields.
"""

import functools
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
import pandas as pd
from tabulate import tabulate

from jax_emossl import __version__, processes, workdir
from jax_emossl.arms import ARMS
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.workdir import RESULTS_FILE as RESULTS_FILE

PREDICTIONS = "predictions"
ILLUSTRATION = f"{PREDICTIONS}/illustration.npz"
_FIELDS = {"arm": "arm", "labels": "num_labels", "seed": "seed", "fold": "fold", "step": "step"}  # of the table, before its metrics
_COLUMNS = (
    "loss",
    "total_loss",
    "mae",
    "accuracy4",
    "mae_positive",
    "auroc",
    "balanced_accuracy",
    "f1_weighted",
    "uar",
    "f1_macro",
    "accuracy",
)


def row(
    corpus: str, synthetic: bool, arm: str, num_labels: int, seed: int, fold: str, step: int | None, selection: dict | None, report: Report
) -> dict:
    """One row; `selection` is {"fold", "metric", "value"} or, for the constant predictor, None."""
    values, undefined = report
    return {
        "corpus": corpus, "synthetic": synthetic, "arm": arm, "num_labels": num_labels, "seed": seed, "fold": fold,
        "step": step, "selection": selection, "metrics": values, "undefined": undefined,
    }  # fmt: skip


def write(path: Path, rows: Sequence[dict], config: ml_collections.ConfigDict) -> None:
    """Writes results.json whole or not at all; of several processes the first does."""
    if not processes.first():
        return
    command = shlex.join(["python", "-m", "jax_emossl.main", *sys.argv[1:]])
    table = {"runs": list(rows), "config": workdir.plain(config), "command": command, "version": __version__, "commit": _commit()}
    workdir.write_atomically(path, json.dumps(table, indent=1, allow_nan=False))


@functools.cache
def _commit() -> str | None:
    """The commit of the code that runs, marked where it was changed since; None where no repository tracks this file, as where it is installed."""
    commands = ["ls-files", "--error-unmatch", __file__], ["describe", "--always", "--dirty=, changed since", "--exclude=*", "--abbrev=7"]
    try:
        said = [subprocess.run(["git", *own], cwd=Path(__file__).parent, capture_output=True, check=True, text=True) for own in commands]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[-1].stdout.strip() or None


def keep_predictions(out: Path, name: Path, **arrays: np.ndarray) -> str:
    """Keeps arrays beside results.json, whole or not at all; returns their path within `out`. Of several processes the first does."""
    file = out / PREDICTIONS / name.with_name(name.name + ".npz")
    if processes.first():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(stream := io.BytesIO(), **arrays)
        workdir.write_atomically(file, stream.getvalue())
    return str(file.relative_to(out))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `keep_predictions` kept; UserError where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy's and zip's readers raise whatever they stumble over
        raise UserError(
            f"{path} is missing or damaged ({type(error).__name__}): remove results.json and run the experiment anew."
        ) from error


def read(path: Path) -> dict:
    """Reads results.json; UserError where it is missing or not of the documented form."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(table, ensure_ascii=False).encode()  # half of a surrogate pair, which JSON lets pass, no report could hold
        sound = isinstance(table["runs"], list) and all(map(_is_row, table["runs"]))
        sound = sound and isinstance(table["config"], dict) and isinstance(table["version"], str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as results ({type(error).__name__}): run the experiment anew.") from error
    if not sound:
        raise UserError(f"{path} is not of the form that README documents: run the experiment anew.")
    return table


def frame(path: str | Path) -> pd.DataFrame:
    """The rows of a results.json, or of the one in a workdir, as a data frame, for plots and tests of your own.

    A column per field and metric; those of an emotion are `<metric>_<emotion>`, what validation chose is `selection_<field>`.
    """
    path = Path(path)
    rows = []
    for row in read(path / RESULTS_FILE if path.is_dir() else path)["runs"]:
        flat = {name: value for name, value in row.items() if name not in ("metrics", "undefined", "selection")}
        flat |= {f"selection_{name}": value for name, value in (row["selection"] or {}).items()}
        flat |= {name: value for name, value in row["metrics"].items() if name not in ("per_emotion", "confusion")}
        for emotion, own in row["metrics"].get("per_emotion", {}).items():
            flat |= {f"{name}_{emotion}": value for name, value in own.items()}
        rows.append(flat)
    return pd.DataFrame(rows)


def _is_row(row: dict) -> bool:
    """Raises KeyError, TypeError or AttributeError on what is no row at all."""
    maybe = [row["step"], *(value for name, value in row["metrics"].items() if name not in ("per_emotion", "confusion"))]
    numbers = [row["num_labels"], row["seed"], *(value for value in maybe if value is not None)]
    words = [row["corpus"], row["arm"], row["fold"]]
    if "budget" in row:  # what a comparison adds
        numbers += [row["budget"], row.get("pretraining", 0)]
        words += [row["variant"], row["folds"], row.get("unit", "")]
        mechanism = ARMS[row["arm"]].mechanism if row["arm"] in ARMS else ""
        if mechanism != "constant":
            words += [row["predictions"], *row["classes"]]
            if row["selection"]["fold"] not in ("train", "valid"):
                return False
        if mechanism == "tuned":
            words += [row["selection"]["strategy"], row["selection"]["metric"]]
            numbers.append(row["selection"].get("learning_rate", 0))
            numbers += [number for own in row["selection"].get("evaluations", ()) for step, value in own for number in (step, value)]
    return (
        all(map(_is_number, numbers))
        and all(isinstance(word, str) for word in words)
        and isinstance(row["synthetic"], bool)
        and isinstance(row["selection"], dict | None)
        and isinstance(row.get("classes", []), list)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def table(rows: Sequence[dict]) -> str:
    """Rows as aligned text, one line each, with the metrics they share."""
    shown = [name for name in _COLUMNS if any(row["metrics"].get(name) is not None for row in rows)]
    lines = [[*(row[name] for name in _FIELDS.values()), *(row["metrics"].get(name) for name in shown)] for row in rows]
    return tabulate(lines, [*_FIELDS, *shown], tablefmt="plain", floatfmt=".3f", missingval="-", numalign="right")
