"""Checkpoints of a run (Orbax), and the one named transfer: the encoder with its frontend."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jax_emossl import metrics
from jax_emossl.data.frontend import Frontend
from jax_emossl.errors import UserError, notice

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
ENCODER_FILE = "encoder.json"
_LATEST = 2


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after `step` as if nothing had happened.

    Attributes:
      step: steps done.
      params: parameters after them.
      opt_state: the optimiser's state.
      best: parameters of the best step so far by validation.
      progress: what the loop has decided and not yet logged, as JSON.
    """

    step: int
    params: Any = None
    opt_state: Any = None
    best: Any = None
    progress: dict = dataclasses.field(default_factory=dict)


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
    """The latest two checkpoints of a run and the best by its selection metric, each whole or absent."""

    def __init__(self, workdir: Path, metric: str):
        self._sign = -1 if metric in metrics.LOWER_IS_BETTER else 1
        self._workdir = workdir
        self._manager = _manager(workdir, read_only=False)

    def save(self, snapshot: Snapshot, value: float | None) -> None:
        """Starts saving in the background; `value` is the selection metric, None where the step was not evaluated."""
        # The next step reuses (donates) the loop's buffers while the save is still reading.
        state = jax.tree.map(jnp.copy, _state(snapshot))
        score = None if value is None else {"score": self._sign * value}
        with _storage(self._workdir):
            self._manager.save(snapshot.step, args=_save_args(state, snapshot.progress), metrics=score, force=True)

    def latest(self, like: Snapshot) -> Snapshot | None:
        """The newest checkpoint that is intact, shaped like `like`; damaged newer ones are set aside with a warning.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            snapshot = _restore_intact(self._manager, step, _state(like))
            if snapshot:
                return snapshot
            self._set_aside(step)
        if steps:
            raise UserError(f"All checkpoints in {self._workdir / FOLDER} are damaged: start anew in another --workdir.")
        return None

    def newest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def _set_aside(self, step: int) -> None:
        folder = self._workdir / DAMAGED_FOLDER
        notice(f"the checkpoint of step {step} in {self._workdir} is damaged; it is moved to {folder} and the one before it is used.")
        self._manager.close()
        folder.mkdir(exist_ok=True)
        os.replace(self._workdir / FOLDER / str(step), folder / f"{step}-{os.getpid()}")
        self._manager = _manager(self._workdir, read_only=False)

    def close(self) -> None:
        """Waits for saves under way."""
        with _storage(self._workdir):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _storage(workdir: Path) -> Iterator[None]:
    """A disk that is full or gone is one sentence; what was saved before stays."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"A checkpoint in {workdir} cannot be saved ({detail}): free some space and run the same command again.") from error


def _manager(workdir: Path, read_only: bool) -> ocp.CheckpointManager:
    best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=_score,
        preservation_policy=AnyPreservationPolicy([LatestN(_LATEST), best]),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def _score(saved_metrics: dict) -> float:
    """The selection metric, signed so that more is better."""
    return saved_metrics["score"]


def _state(snapshot: Snapshot) -> dict[str, Any]:
    return {"params": snapshot.params, "opt_state": snapshot.opt_state, "best": snapshot.best}


def _save_args(state: dict[str, Any], progress: dict) -> ocp.args.Composite:
    items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
    return ocp.args.Composite(**items, progress=ocp.args.JsonSave(progress), sha256=ocp.args.JsonSave(digest(state)))


def _restore(manager: ocp.CheckpointManager, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """Arrays (all, or those in `like`) and progress of a checkpoint.

    Raises:
      Exception: the checkpoint is damaged; Orbax, TensorStore and JSON each have their own errors.
      ValueError: it decodes, but not to what was saved.
    """
    items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    args = ocp.args.Composite(**items, progress=ocp.args.JsonRestore(), sha256=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    state = {name: restored[name] for name in like}
    sums = digest(state)
    if any(restored.sha256.get(path) != sum_ for path, sum_ in sums.items()):
        raise ValueError("SHA-256 sums differ")
    return state, restored.progress


def _restore_intact(manager: ocp.CheckpointManager, step: int, like: dict[str, Any]) -> Snapshot | None:
    try:
        state, progress = _restore(manager, step, like)
    except Exception as error:  # whatever it is, this checkpoint cannot be used
        notice(f"checkpoint {step} cannot be read ({' '.join(str(error).split())[:200]}).")
        return None
    return Snapshot(step, **state, progress=progress)


def load_best_params(workdir: Path) -> tuple[int, dict]:
    """Step and parameters (NumPy) of the best step of the run in `workdir`, from its newest intact checkpoint.

    Raises:
      UserError: the run has no intact checkpoint that has been evaluated.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(f"{workdir} holds no checkpoint: give the workdir of a finished run.")
    manager = _manager(workdir, read_only=True)
    try:
        for step in sorted(manager.all_steps(), reverse=True):
            snapshot = _restore_intact(manager, step, {"best": _on_one_device(workdir / FOLDER / str(step) / "best")})
            if snapshot and snapshot.progress["best_step"] is not None:
                return snapshot.progress["best_step"], jax.tree.map(np.asarray, snapshot.best)
    finally:
        manager.close()
    raise UserError(f"{workdir} holds no complete checkpoint: run its training first.")


def _on_one_device(item: Path) -> Any:
    """The shapes of a saved item, placed on one device here, whatever devices it came from; None if unreadable."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        saved = ocp.StandardCheckpointer().metadata(item.absolute()).item_metadata.tree
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), saved)
    except Exception:  # as in `_restore_intact`, which then tells of the damage
        return None


@dataclasses.dataclass(frozen=True)
class EncoderCard:
    """What belongs to an encoder besides its weights.

    Attributes:
      model: the config fields that fix its shapes.
      frontend: its feature normalisation.
      corpus: name of the corpus it was trained on.
      emotions: the corpus's emotions.
      recordings: the training recordings it has seen.
      classes: what the run's head answers; empty for a pretraining.
    """

    model: dict
    frontend: Frontend
    corpus: str
    emotions: tuple[str, ...]
    recordings: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def save(self, workdir: Path) -> None:
        table = {
            "model": self.model,
            "frontend": self.frontend.to_json(),
            "corpus": self.corpus,
            "emotions": list(self.emotions),
            "recordings": list(self.recordings),
            "classes": list(self.classes),
        }
        (workdir / ENCODER_FILE).write_text(json.dumps(table, indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, workdir: Path) -> EncoderCard:
        """Raises UserError where `workdir` is not that of a run that has trained an encoder."""
        file = workdir / ENCODER_FILE
        if not file.is_file() or not (workdir / FOLDER).is_dir():
            raise UserError(f"init_from is '{workdir}', which holds no checkpoint: give the workdir of a finished pretraining.")
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                dict(table["model"]),
                Frontend.from_json(table["frontend"]),
                str(table["corpus"]),
                tuple(map(str, table["emotions"])),
                tuple(map(str, table["recordings"])),
                tuple(map(str, table["classes"])),
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"{file} is damaged ({type(error).__name__}: {' '.join(str(error).split())}): pretrain anew.") from error
