"""Checkpoints of a run (Orbax), and the one named transfer: the encoder with its frontend."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jax_emossl import metrics
from jax_emossl.data.frontend import Frontend
from jax_emossl.errors import UserError

FOLDER = "checkpoints"
ENCODER_FILE = "encoder.json"
_LATEST = 2


class Checkpoints:
    """The latest two checkpoints of a run and the best by its selection metric.

    Each holds the parameters, the optimiser's state, and `progress`: what the loop has decided so far, as JSON.
    """

    def __init__(self, workdir: Path, metric: str):
        self._sign = -1 if metric in metrics.LOWER_IS_BETTER else 1
        policy = AnyPreservationPolicy([LatestN(_LATEST), BestN(get_metric_fn=_score, n=1)])
        options = ocp.CheckpointManagerOptions(best_fn=_score, preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

    def save(self, step: int, params: Any, opt_state: Any, progress: dict) -> None:
        """Starts saving in the background; a checkpoint appears whole or not at all."""
        # The next step reuses (donates) these buffers while the save is still reading.
        params, opt_state = jax.tree.map(jnp.copy, (params, opt_state))
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), opt_state=ocp.args.StandardSave(opt_state), progress=ocp.args.JsonSave(progress)
        )
        self._manager.save(step, args=args, metrics={"score": self._sign * progress["value"]})

    def latest(self, params: Any, opt_state: Any) -> tuple[int, Any, Any, dict] | None:
        """Step, parameters, optimiser state and progress of the newest checkpoint, shaped like the arguments."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params), opt_state=ocp.args.StandardRestore(opt_state), progress=ocp.args.JsonRestore()
            ),
        )
        return step, restored.params, restored.opt_state, restored.progress

    def params(self, step: int, params: Any) -> Any:
        """Parameters of the checkpoint at `step`, shaped like `params`."""
        return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(params))).params

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


@dataclasses.dataclass(frozen=True)
class EncoderCard:
    """What belongs to an encoder besides its weights.

    Attributes:
      model: the config fields that fix its shapes.
      frontend: its feature normalisation.
      corpus: name of the corpus it was trained on.
      emotions: the corpus's emotions.
      recordings: the training recordings it has seen.
    """

    model: dict
    frontend: Frontend
    corpus: str
    emotions: tuple[str, ...]
    recordings: tuple[str, ...]

    def save(self, workdir: Path) -> None:
        table = {
            "model": self.model,
            "frontend": self.frontend.to_json(),
            "corpus": self.corpus,
            "emotions": list(self.emotions),
            "recordings": list(self.recordings),
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
            )
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"{file} is damaged ({type(error).__name__}: {' '.join(str(error).split())}): pretrain anew.") from error


def load_best_params(workdir: Path) -> tuple[int, dict]:
    """Step and parameters (NumPy) of the best checkpoint of the run in `workdir`."""
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_score)
    manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)
    try:
        step = manager.best_step()
        if step is None:
            raise UserError(f"{workdir} holds no complete checkpoint: run its training first.")
        params = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore())).params
        return step, jax.tree.map(np.asarray, params)
    finally:
        manager.close()


def _score(saved_metrics: dict) -> float:
    """The selection metric, signed so that more is better."""
    return saved_metrics["score"]
