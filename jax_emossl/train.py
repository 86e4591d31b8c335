"""THE loop: one for every objective. State in, state out; the batch at step s is a function of (seed, s)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from tqdm import tqdm

from jax_emossl import mesh, metrics
from jax_emossl.checkpoint import Checkpoints
from jax_emossl.data.batches import Segments, in_memory
from jax_emossl.data.indices import Sampler
from jax_emossl.data.pipeline import tf_data
from jax_emossl.errors import UserError
from jax_emossl.logs import Scalars
from jax_emossl.objectives import Objective, Params, check_choice
from jax_emossl.optimizer import Optimizer, Rates
from jax_emossl.predict import predict

_INIT_SEGMENTS = 256  # training segments shown to an objective's initialisation


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The parameters of the best step by validation, with that step and its value of the selection metric."""

    params: Params
    step: int
    value: float
    calibration: Any


@functools.partial(jax.jit, static_argnames="objective")
def init_params(objective: Objective, key: jax.Array, batch: dict[str, jax.Array], encoder: Params | None) -> Params:
    return objective.init(key, batch, encoder)


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnames=("params", "opt_state"))
def train_step(objective: Objective, optimizer: Optimizer, rates: Rates, params: Params, opt_state: Any, step, batch, key):
    """One step: the gradient of the global sum over the global count, however the batch is sharded."""

    def mean_loss(params):
        total, count, scalars = objective.loss(params, batch, jax.random.fold_in(key, step))
        return total / jnp.maximum(count, 1e-9), (total, count, scalars)

    gradients, (total, count, scalars) = jax.grad(mean_loss, has_aux=True)(params)
    params, opt_state = optimizer.apply(gradients, opt_state, params, rates, step)
    return params, opt_state, {"loss": total, **scalars, "count": count}


def fit(
    objective: Objective,
    train: Segments,
    valid: Segments,
    config: ml_collections.ConfigDict,
    *,
    encoder: Params | None = None,
    background: Segments | None = None,
    checkpoints: Checkpoints | None = None,
    scalars: Callable[[int], Scalars] | None = None,
    description: str = "training",
) -> Fitted:
    """Trains on `train`, chooses the step on `valid`; resumes from `checkpoints` where it holds any.

    Args:
      config: the whole config; `seed`, `data` and `train` are read.
      encoder: encoder parameters to start from instead of random ones.
      background: training segments shown, without labels, to the objective's initialisation; `train` if None.
      checkpoints: saved at every evaluation; None keeps all in memory.
      scalars: makes the log for a run that (re)starts after the given step.

    Raises:
      UserError: the batch does not fit the devices, or training diverged.
    """
    settings = config.train
    mesh.check_batch_size(settings.batch_size)
    optimizer = Optimizer(settings.b2, settings.weight_decay, settings.clip_norm, settings.warmup_steps, settings.steps)
    rates = mesh.replicate(Rates.make(settings.strategy, settings.learning_rate, settings.encoder_factor, settings.probe_steps))
    growth = config.data.bucket_growth
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    params = _initial(objective, init_key, background or train, growth, encoder)
    opt_state = jax.jit(optimizer.transformation().init)(params)

    step, progress, best = 0, {"value": None, "best_step": None, "best_value": None, "stale": 0}, None
    if checkpoints and (latest := checkpoints.latest(params, opt_state)):
        step, params, opt_state, progress = latest
        best = params if progress["best_step"] == step else checkpoints.params(progress["best_step"], params)
    log = scalars(step) if scalars else None

    sampler = Sampler(train.lengths, settings.batch_size, settings.crop, growth)
    loaders = {"memory": in_memory, "tf.data": tf_data}
    load = loaders[check_choice("data.loader", config.data.loader, tuple(loaders))]
    done = _finished(progress, step, settings)
    batches = iter(()) if done else load(train, sampler, config.seed, step, settings.steps, mesh.process())
    sums: list[dict] = []
    with tqdm(total=settings.steps, initial=step, desc=description, unit="step", leave=False, disable=None) as bar:
        for batch in batches:
            params, opt_state, sum_ = train_step(
                objective, optimizer, rates, params, opt_state, jnp.int32(step), mesh.shard(batch), step_key
            )
            sums.append(sum_)
            step += 1
            bar.update()
            if step % settings.log_every == 0 or step == settings.steps:
                means = _means(sums, step)
                sums = []
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                if log:
                    log.write(step, {f"train/{name}": value for name, value in means.items()})
            if step % settings.eval_every == 0 or step == settings.steps:
                outputs = predict(objective, params, valid, settings.batch_size, growth)
                report, _ = objective.metrics(outputs, valid.labels, objective.calibrate(outputs, valid.labels))
                progress = _judge(progress, objective.selection, report, step)
                if progress["best_step"] == step:
                    best = jax.tree.map(jnp.copy, params)
                if log:
                    log.write(step, {f"valid/{n}": v for n, v in report.items() if isinstance(v, float)})
                if checkpoints:
                    checkpoints.save(step, params, opt_state, progress)
                if _finished(progress, step, settings):
                    break
    if log:
        log.close()
    calibration = objective.calibrate(predict(objective, best, valid, settings.batch_size, growth), valid.labels)
    return Fitted(best, progress["best_step"], progress["best_value"], calibration)


def _initial(objective: Objective, key: jax.Array, segments: Segments, growth: float, encoder: Params | None) -> Params:
    """Initial parameters, from a fixed choice of training segments."""
    rows = min(_INIT_SEGMENTS, len(segments))
    batch = segments.gather(Sampler(segments.lengths, rows, crop=256, growth=growth).indices(0, 0))
    del batch["labels"]
    return mesh.replicate(init_params(objective, key, batch, encoder))


def _finished(progress: dict, step: int, settings: ml_collections.ConfigDict) -> bool:
    return step >= settings.steps or (settings.patience > 0 and progress["stale"] >= settings.patience)


def _judge(progress: dict, metric: str, report: dict, step: int) -> dict:
    """Progress after an evaluation: the best step so far, and for how many evaluations it has stood."""
    value = report[metric]
    if value is None:
        raise UserError(f"The validation fold does not define {metric}: choose another objective.selection.")
    if metrics.better(metric, value, progress["best_value"]):
        return {"value": value, "best_step": step, "best_value": value, "stale": 0}
    return {**progress, "value": value, "stale": progress["stale"] + 1}


def _means(sums: list[dict], step: int) -> dict[str, float]:
    """Means over the steps since the last log; stops loudly where one is not finite."""
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    count = max(total.pop("count"), 1e-9)
    means = {name: value / count for name, value in total.items()}
    if not all(map(math.isfinite, means.values())):
        raise UserError(f"The training loss is not finite by step {step}: lower train.learning_rate or train.clip_norm and restart.")
    return means
