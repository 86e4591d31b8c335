"""The folder of a run: its config, and the rule that one folder holds one run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ml_collections

from jax_emossl import results
from jax_emossl.errors import UserError

CONFIG_FILE = "config.json"


def default(config_path: str) -> Path:
    """runs/<config>-<time>."""
    return Path("runs") / f"{Path(config_path.split(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def enter(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes its config, or checks that it is the folder of the same run.

    Raises:
      UserError: the folder cannot be written, or belongs to a run with another config.
    """
    wanted = results.plain(config)
    if (workdir / CONFIG_FILE).exists():
        differing = _differing(results.plain(read_config(workdir)), wanted)
        if differing:
            raise UserError(f"{workdir} belongs to a run whose config differs in {', '.join(differing)}: give another --workdir, or the same config.")
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(wanted, indent=1, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error.strerror}): give another --workdir.") from error


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`."""
    file = workdir / CONFIG_FILE
    try:
        config = ml_collections.ConfigDict(json.loads(file.read_text(encoding="utf-8")))
        config.data.norm_prior = float(config.data.norm_prior)
        return config
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is missing or damaged: give the workdir of a run.") from error


def _differing(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    names = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += _differing(left, right, f"{prefix}{key}.")
        elif left != right and not (isinstance(left, float) and str(left) == str(right)):
            names.append(prefix + key)
    return names
