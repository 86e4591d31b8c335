"""`results.json`, the one form in which every run leaves its numbers, and their table for people.

    {"runs": [row, ...], "config": {...}, "command": "python -m ...", "version": "0.1.0"}

One row per run and evaluated fold; README documents its fields.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from jax_emossl import __version__, workdir
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.workdir import RESULTS_FILE as RESULTS_FILE

ARMS = ("pretrain", "pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals", "constant")
TUNED = ("pretrained", "scratch")  # arms of a comparison whose encoder is trained on the labels
PREDICTIONS = "predictions"
ILLUSTRATION = f"{PREDICTIONS}/illustration.npz"
_COLUMNS = ("loss", "mae", "accuracy4", "mae_positive", "auroc", "balanced_accuracy", "f1_weighted", "uar", "f1_macro", "accuracy")


def row(corpus: Corpus, arm: str, num_labels: int, seed: int, fold: str, step: int | None, selection: dict | None, report: Report) -> dict:
    """One row; `selection` is {"fold", "metric", "value"} or, for the constant predictor, None."""
    values, undefined = report
    return {
        "corpus": corpus.name,
        "synthetic": corpus.synthetic,
        "arm": arm,
        "num_labels": num_labels,
        "seed": seed,
        "fold": fold,
        "step": step,
        "selection": selection,
        "metrics": values,
        "undefined": undefined,
    }


def write(path: Path, rows: Sequence[dict], config: ml_collections.ConfigDict) -> None:
    """Writes results.json whole or not at all."""
    command = shlex.join(["python", "-m", "jax_emossl.main", *sys.argv[1:]])
    table = {"runs": list(rows), "config": workdir.plain(config), "command": command, "version": __version__}
    workdir.write_atomically(path, json.dumps(table, indent=1, allow_nan=False))


def keep_predictions(out: Path, name: Path, **arrays: np.ndarray) -> str:
    """Keeps arrays beside results.json, whole or not at all; returns their path within `out`."""
    file = out / PREDICTIONS / name.with_name(name.name + ".npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(stream := io.BytesIO(), **arrays)
    workdir.write_atomically(file, stream.getvalue())
    return str(file.relative_to(out))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `keep_predictions` kept.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy's and zip's readers raise whatever they stumble over
        raise UserError(
            f"{path} is missing or damaged ({type(error).__name__}): remove results.json and run the experiment anew."
        ) from error


def read(path: Path) -> dict:
    """Reads results.json.

    Raises:
      UserError: the file is missing or not of the documented form.
    """
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


def _is_row(row: dict) -> bool:
    """Raises KeyError, TypeError or AttributeError on what is no row at all."""
    numbers = [value for name, value in row["metrics"].items() if name not in ("per_emotion", "confusion")]
    return (
        all(value is None or _is_number(value) for value in numbers)
        and row["arm"] in ARMS
        and isinstance(row["synthetic"], bool)
        and all(isinstance(row[name], str) for name in ("corpus", "fold"))
        and all(_is_number(row[name]) for name in ("num_labels", "seed"))
        and (row["step"] is None or _is_number(row["step"]))
        and (row["selection"] is None or isinstance(row["selection"], dict))
        and ("budget" not in row or _is_cell(row))
    )


def _is_cell(row: dict) -> bool:
    """Whether a row has what a comparison adds: predictions of all but the constant, and what validation chose for `TUNED` arms."""
    scored = row["arm"] == "constant" or (
        isinstance(row["predictions"], str) and isinstance(row["classes"], list) and all(isinstance(name, str) for name in row["classes"])
    )
    chosen = row["arm"] not in TUNED or (
        isinstance(row["selection"]["strategy"], str) and _is_number(row["selection"].get("learning_rate", 0))
    )
    return scored and chosen and _is_number(row["budget"]) and all(isinstance(row[name], str) for name in ("variant", "folds"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def table(rows: Sequence[dict]) -> str:
    """Rows as aligned text, one line each, with the metrics they share."""
    columns = [c for c in _COLUMNS if any(r["metrics"].get(c) is not None for r in rows)]
    lines = [["arm", "labels", "seed", "fold", "step", *columns]]
    for r in rows:
        numbers = [r["metrics"].get(c) for c in columns]
        lines.append(
            [r["arm"], str(r["num_labels"]), str(r["seed"]), r["fold"], "-" if r["step"] is None else str(r["step"])]
            + ["-" if n is None else f"{n:.3f}" for n in numbers]
        )
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, the others flush right."""
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, width, strict=True))).rstrip()
        for line in lines
    )
