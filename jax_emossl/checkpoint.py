"""Checkpoints of a run (Orbax): exact resume, and the best step for those who start from it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jax_emossl import processes
from jax_emossl.errors import UserError, notice
from jax_emossl.workdir import RESULTS_FILE

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
_LATEST = 2
_PROGRESS = "progress"  # its name among the sums; paths of arrays start with a bracket
_STORAGE_STATUS = re.compile("[A-Z]+(_[A-Z]+)*: ")  # how a TensorStore error begins; its type, ValueError, says nothing


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after `step` as if nothing had happened.

    Attributes:
      step: steps done.
      variables: parameters and constants after them.
      best: variables of the best step so far by validation.
      progress: what the loop has decided and not yet logged, as JSON.
    """

    step: int
    variables: Any = None
    opt_state: Any = None
    best: Any = None
    progress: dict = dataclasses.field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, Any]:
        return {"variables": self.variables, "opt_state": self.opt_state, "best": self.best}


def digest(tree: Any) -> dict[str, str]:
    """SHA-256 of every array of a tree, under its path: flipped bytes may otherwise decode quietly."""
    sums = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        content = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        content.update(array.tobytes())
        sums[jax.tree_util.keystr(path)] = content.hexdigest()
    return sums


class Checkpoints:
    """The latest two checkpoints of a run, each whole or absent, and each with the variables of the best step so far.

    Of several processes the first alone has them, and a folder that all share is not needed: each is to give snapshots whole.

    Args:
      every: s from one save to the next that can wait.
    """

    def __init__(self, workdir: Path, every: float = 0.0):
        self._workdir, self._every, self._saved = workdir, every, -math.inf
        with processes.as_one(), _storage(workdir):
            self._manager = _manager(workdir, read_only=False) if processes.first() else None

    def due(self) -> bool:
        """Whether a save that can wait is to be made, the same in all processes; the first always is, so that a full disk is known early."""
        return processes.of_first(lambda: monotonic() - self._saved >= self._every)

    def save(self, snapshot: Snapshot) -> None:
        """Starts saving in the background."""
        if not self._manager:
            return
        self._saved = monotonic()
        # The next step reuses (donates) the loop's buffers while the save is still reading.
        state = jax.tree.map(_copy(), snapshot.arrays)
        with _storage(self._workdir):
            self._manager.save(snapshot.step, args=_save_args(state, snapshot.progress), force=True)

    def latest(self, like: Snapshot) -> Snapshot | None:
        """The newest intact checkpoint, shaped like `like`, damaged newer ones set aside; UserError where all are damaged or it has other shapes."""
        if not self._manager:
            return None
        steps, wanted = sorted(self._manager.all_steps(), reverse=True), like.arrays
        for step in steps:
            saved = _saved_shapes(self._workdir, step, wanted)
            if saved and shapes(saved) != shapes(wanted):
                if _restore_intact(self._manager, step, saved, named=False):
                    raise UserError(
                        f"The checkpoint of step {step} in {self._workdir} has other shapes than the config: start in another --workdir."
                    )
            else:
                snapshot = _restore_intact(self._manager, step, wanted)
                if snapshot:
                    return snapshot
            self._manager.close()
            _set_aside(self._workdir, step)
            self._manager = _manager(self._workdir, read_only=False)
        if steps:
            raise UserError(f"All checkpoints in {self._workdir / FOLDER} are damaged: start anew in another --workdir.")
        return None

    def newest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager and self._manager.latest_step()

    def close(self) -> None:
        """Waits for saves under way."""
        if not self._manager:
            return
        with _storage(self._workdir):
            self._manager.wait_until_finished()
            self._manager.close()


def _set_aside(workdir: Path, step: int) -> None:
    folder = workdir / DAMAGED_FOLDER
    notice(f"the checkpoint of step {step} in {workdir} is damaged: it is moved to {folder} and not used.")
    folder.mkdir(exist_ok=True)
    os.replace(workdir / FOLDER / str(step), folder / f"{step}-{os.getpid()}")


@contextlib.contextmanager
def _storage(workdir: Path) -> Iterator[None]:
    """A disk that is full or gone is one sentence; what was saved before stays."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not _STORAGE_STATUS.match(str(error)):
            raise
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"A checkpoint in {workdir} cannot be saved ({detail}): free some space there and run the same command again."
        ) from error


@functools.cache
def _hush() -> None:
    """What Orbax and TensorStore tell on standard error, from their threads, they also raise, and there it becomes one sentence."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited")
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        # Once the first of several arrays has failed, nobody waits for the others.
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            before(unraisable)

    sys.unraisablehook = hook


def _manager(workdir: Path, read_only: bool) -> ocp.CheckpointManager:
    _hush()
    folder, alone = (workdir / FOLDER).absolute(), {}
    if processes.several():
        own, _ = processes.part()
        alone = {"multiprocessing_options": MultiprocessingOptions(own, {own}), "create": False}
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=_LATEST, cleanup_tmp_directories=not read_only, read_only=read_only, **alone)
    try:
        return ocp.CheckpointManager(folder, options=options)
    except OSError:
        raise
    except Exception as error:  # Orbax reads one file of every checkpoint at once, and does without where there is none
        raise UserError(
            f"One of {folder}/*/_CHECKPOINT_METADATA is damaged ({' '.join(str(error).split())[:200]}): "
            "delete it, the checkpoint is read without."
        ) from error


def _copy() -> Callable:
    """How an array is copied to be saved: on the devices or, where one of several processes saves alone, which Orbax does not do with theirs, off them."""
    return np.array if processes.several() else jnp.copy


def _save_args(state: dict[str, Any], progress: dict) -> ocp.args.Composite:
    items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
    progress = json.loads(json.dumps(progress))  # as it is now, whatever the loop does to it while it is being saved
    sums = digest(state) | {_PROGRESS: _text_digest(progress)}
    return ocp.args.Composite(**items, progress=ocp.args.JsonSave(progress), sha256=ocp.args.JsonSave(sums))


def _text_digest(progress: dict) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _restore(manager: ocp.CheckpointManager, step: int, like: dict[str, Any], named: bool) -> tuple[dict[str, Any], dict]:
    """Arrays (all, or those in `like`) and progress of a checkpoint; where `like` is `named` as what was saved, paths are compared, too.

    Raises Exception where the checkpoint is damaged (Orbax, TensorStore and JSON each have their own), ValueError where it decodes
    to what was not saved.
    """
    items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    args = ocp.args.Composite(**items, progress=ocp.args.JsonRestore(), sha256=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    state = {name: restored[name] for name in like}
    sums = digest(state) | {_PROGRESS: _text_digest(restored.progress)}
    whole = sums.items() <= restored.sha256.items() if named else sorted(sums.values()) == sorted(restored.sha256.values())
    if not whole or not isinstance(restored.progress, dict):
        raise ValueError("SHA-256 sums differ")
    return state, restored.progress


def _restore_intact(manager: ocp.CheckpointManager, step: int, like: dict[str, Any], named: bool = True) -> Snapshot | None:
    try:
        state, progress = _restore(manager, step, like, named)
    except Exception as error:  # whatever it is, this checkpoint cannot be used
        notice(f"checkpoint {step} cannot be read ({' '.join(str(error).split())[:200]}).")
        return None
    return Snapshot(step, **state, progress=progress)


@dataclasses.dataclass(frozen=True)
class Best:
    """The variables (NumPy) of a run's best step, and what was calibrated there."""

    step: int
    variables: dict
    calibration: Any


def load_best(workdir: Path) -> Best:
    """The best step of the run in `workdir`, from its newest intact checkpoint; UserError where none has been evaluated.

    Of several processes the first reads it, for all.
    """
    with processes.as_one():
        own = _load_best(workdir) if processes.first() else Best(0, None, None)
    step, calibration = processes.of_first(lambda: (own.step, own.calibration))
    return Best(step, processes.tree_of_first(own.variables), calibration)


def _load_best(workdir: Path) -> Best:
    if not (workdir / FOLDER).is_dir():
        raise UserError(f"{workdir} holds no checkpoint: give the workdir of a finished run.")
    manager = _manager(workdir, read_only=True)
    try:
        for step in sorted(manager.all_steps(), reverse=True):
            saved = _saved_shapes(workdir, step, ("best",))
            snapshot = _restore_intact(manager, step, saved or {"best": None})
            if snapshot and (own := snapshot.progress["members"][0])["best_step"] is not None:
                if not (workdir / RESULTS_FILE).exists():
                    notice(f"{workdir} is not finished (it has no {RESULTS_FILE}): its best step so far, {own['best_step']}, is used.")
                return Best(own["best_step"], jax.tree.map(lambda leaf: np.asarray(leaf)[0], snapshot.best), own["calibration"])
    finally:
        manager.close()
    raise UserError(f"{workdir} holds no complete checkpoint: run its training first.")


def _saved_shapes(workdir: Path, step: int, items: Iterable[str]) -> dict[str, Any] | None:
    """The saved shapes of a checkpoint's trees, placed on one device here, whatever devices they came from; None if unreadable."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    folder = (workdir / FOLDER / str(step)).absolute()
    try:
        saved = {name: ocp.StandardCheckpointer().metadata(folder / name).item_metadata.tree for name in items}
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), saved)
    except Exception:  # as in `_restore_intact`, which then tells of the damage
        return None


def shapes(tree: Any) -> dict[str, tuple]:
    """Shape and type of every array, under a path that is the same for a named tuple and the dict it was saved as."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(a.shape), jnp.dtype(a.dtype)) for path, a in flat}
