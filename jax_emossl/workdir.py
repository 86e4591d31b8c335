"""The folder of a run: its config, and the rule that one folder holds one run."""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

import ml_collections

from jax_emossl.config import flat
from jax_emossl.errors import UserError

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
RESULTS_FILE = "results.json"


def default(config_path: str) -> Path:
    """runs/<config>-<time>."""
    return Path("runs") / f"{Path(config_path.split(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def enter(workdir: Path, config: ml_collections.ConfigDict, insist: bool = False) -> None:
    """Makes the folder this process's own and writes its config, or checks that it is the folder of the same run.

    With `insist`, which holds for the folders within it, too, a config that differs replaces the folder's, and what is finished stays.
    Raises UserError where the folder cannot be written, is in use, or belongs to another run or, where itself is insisted upon, to a
    finished one.
    """
    wanted = plain(config)
    file = workdir / CONFIG_FILE
    within = not _insisted.isdisjoint(workdir.absolute().parents)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _lock(workdir)
        finished = (insist or within) and (workdir / RESULTS_FILE).exists()
        if finished and within:
            return
        if insist:
            _insisted.add(workdir.absolute())
        if finished and not read_config(workdir).get("task") == config.get("task") == "compare":  # whose results grow by the cell
            raise UserError(f"{workdir} holds a finished run, on which --insist cannot go on: give another --workdir.")
        started = any((workdir / name).exists() for name in (RESULTS_FILE, "checkpoints", "pretrain"))
        if file.exists() and started and not (insist or within):
            before, now = flat(plain(read_config(workdir))), flat(wanted)
            if differing := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
                raise UserError(
                    f"{workdir} belongs to a run whose config differs in {', '.join(differing)}: "
                    "give another --workdir or the same config, or --insist to go on with the new one."
                )
        else:
            write_atomically(file, json.dumps(wanted, indent=1, allow_nan=False))
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error.strerror}): give another --workdir.") from error


_insisted: set[Path] = set()  # folders of this process's run
_locks: dict[Path, IO] = {}  # held open, so that they end with the process, however it ends


def _lock(workdir: Path) -> None:
    path = (workdir / LOCK_FILE).absolute()
    if path in _locks:
        return
    _locks[path] = open(path, "w")
    try:
        fcntl.flock(_locks[path], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        _locks.pop(path).close()
        raise UserError(f"{workdir} is in use by another process: wait for it to end, or give another --workdir.") from error


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file whole or not at all; an OSError names it."""
    scratch = path.with_name(path.name + ".partial")
    try:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(scratch, path)
    except OSError as error:  # on a full disk it names no file
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`."""
    file = workdir / CONFIG_FILE
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        for group, name in ((table["data"], "norm_prior"), (table.get("objective", {}), "standards_prior")):
            if name in group:  # infinity is text there; evaluations have none
                group[name] = float(group[name])
        return ml_collections.ConfigDict(table)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is missing or damaged: give the workdir of a run.") from error


def plain(config: ml_collections.ConfigDict) -> dict:
    """The config as JSON; an infinite prior becomes text, which JSON can hold."""
    return json.loads(json.dumps(config.to_dict()), parse_constant=lambda number: str(float(number)))
