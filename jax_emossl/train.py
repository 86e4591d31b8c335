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
import optax
from tqdm import tqdm

from jax_emossl import mesh, metrics, preemption
from jax_emossl.checkpoint import Checkpoints, Snapshot
from jax_emossl.data.batches import Segments, in_memory
from jax_emossl.data.indices import Sampler
from jax_emossl.data.pipeline import tf_data
from jax_emossl.errors import UserError
from jax_emossl.logs import Scalars
from jax_emossl.objectives import Objective, Params, assess, check_choice
from jax_emossl.optimizer import Optimizer, Rates
from jax_emossl.predict import predict

_INIT_SEGMENTS = 256  # training segments shown to an objective's initialisation
_INIT_STEPS = 256  # at most, of each
NO_PROGRESS = {"value": None, "best_step": None, "best_value": None, "calibration": None, "stale": 0}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The parameters of the best step by validation, with that step and its value of the selection metric."""

    params: Params
    step: int
    value: float
    calibration: Any


class Diverged(UserError):
    """A loss was not finite; `best` is the run up to its best evaluation, None before the first."""

    def __init__(self, message: str, best: Fitted | None):
        super().__init__(message)
        self.best = best


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
    return params, opt_state, {"loss": total, **scalars, "count": count, "gradient_norm": optax.global_norm(gradients)}


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
      UserError: the batch does not fit the devices, or (Diverged) the loss was not finite.
      Preempted: a signal asked to stop; the step is saved where there are checkpoints.
    """
    settings = config.train
    mesh.check_batch_size(settings.batch_size)
    optimizer = Optimizer.make(settings)
    rates = mesh.replicate(Rates.make(settings))
    growth = config.data.bucket_growth
    params, step_key, train = begin(objective, config, train, background or train, encoder)
    opt_state = mesh.replicate(jax.jit(optimizer.transformation().init)(params))
    now = Snapshot(0, params, opt_state, jax.tree.map(jnp.copy, params), NO_PROGRESS | {"unlogged": []})
    if checkpoints:
        now = checkpoints.latest(now) or now
    step, params, opt_state, best, progress = now.step, now.params, now.opt_state, now.best, now.progress
    log = scalars(step) if scalars else None

    sampler = Sampler(train.lengths, settings.batch_size, settings.crop, growth)
    loaders = {"memory": in_memory, "tf.data": tf_data}
    load = loaders[check_choice("data.loader", config.data.loader, tuple(loaders))]
    stop = settings.steps if not stale(progress, settings) else step
    batches = load(train, sampler, config.seed, step, stop, mesh.process()) if step < stop else ()
    running: list[dict] = []  # sums still on the device
    with tqdm(total=settings.steps, initial=step, desc=description, unit="step", leave=False, disable=None) as bar:
        for batch in batches:
            params, opt_state, sums = train_step(
                objective, optimizer, rates, params, opt_state, jnp.int32(step), mesh.shard(batch), step_key
            )
            running.append(sums)
            step += 1
            bar.update()
            last = step == settings.steps
            evaluated = last or step % settings.eval_every == 0
            logged = last or step % settings.log_every == 0
            preempted = preemption.requested()
            if evaluated or logged or preempted:
                sums = [{name: float(value) for name, value in own.items()} for own in running]
                _stop_if_diverged(sums, step, checkpoints, _fitted(best, progress))
                progress = {**progress, "unlogged": progress["unlogged"] + sums}
                running = []
            if logged:
                means = _means(progress["unlogged"])
                progress = {**progress, "unlogged": []}
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                if log:
                    log.write(step, {f"train/{name}": value for name, value in means.items()})
            if evaluated:
                outputs = predict(objective, params, valid, settings.batch_size, growth)
                value, calibration, report = assess(objective, outputs, valid.labels)
                progress = judge(progress, objective.selection, value, calibration, step)
                if progress["best_step"] == step:
                    best = jax.tree.map(jnp.copy, params)
                if log:
                    log.write(step, {f"valid/{n}": v for n, v in report.items() if isinstance(v, float)})
            if checkpoints and (evaluated or preempted):
                checkpoints.save(Snapshot(step, params, opt_state, best, progress), progress["value"] if evaluated else None)
            if preempted:
                raise preemption.Preempted
            if evaluated and stale(progress, settings):
                break
    if log:
        log.close()
    return _fitted(best, progress)


def begin(
    objective: Objective, config: ml_collections.ConfigDict, train: Segments, background: Segments, encoder: Params | None
) -> tuple[Params, jax.Array, Segments]:
    """Initial parameters, the key of the steps, and the training segments with what the objective wants beside them."""
    params = initial_params(objective, config, background, encoder)
    view = functools.partial(predict, objective, params, background, config.train.batch_size, config.data.bucket_growth)
    return params, run_keys(config.seed)[1], train.with_extra(objective.extra(params, train, background, view))


def run_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial parameters and of the steps."""
    return tuple(jax.random.split(jax.random.key(seed)))


def initial_params(objective: Objective, config: ml_collections.ConfigDict, segments: Segments, encoder: Params | None) -> Params:
    """Initial parameters, from a fixed choice of training segments."""
    growth = config.data.bucket_growth
    rows = min(_INIT_SEGMENTS, len(segments))
    selection = Sampler(segments.lengths, len(segments), crop=_INIT_STEPS, growth=growth).indices(0, 0).shard(0, -(-len(segments) // rows))
    batch = segments.gather(selection)
    del batch["labels"]
    return mesh.replicate(init_params(objective, run_keys(config.seed)[0], batch, encoder))


def stale(progress: dict, settings: ml_collections.ConfigDict) -> bool:
    """Whether early stopping has ended the run."""
    return settings.patience > 0 and progress["stale"] >= settings.patience


def judge(progress: dict, metric: str, value: float, calibration: Any, step: int) -> dict:
    """Progress after an evaluation: the best step so far, and for how many evaluations it has stood."""
    if metrics.better(metric, value, progress["best_value"]):
        return {**progress, "value": value, "best_step": step, "best_value": value, "calibration": calibration, "stale": 0}
    return {**progress, "value": value, "stale": progress["stale"] + 1}


def _fitted(best: Params, progress: dict) -> Fitted | None:
    """None before the first evaluation."""
    if progress["best_step"] is None:
        return None
    return Fitted(best, progress["best_step"], progress["best_value"], progress["calibration"])


def _stop_if_diverged(sums: list[dict[str, float]], step: int, checkpoints: Checkpoints | None, best: Fitted | None) -> None:
    """Stops the run loudly where one of the last steps' sums is not finite."""
    for ago, own in enumerate(reversed(sums)):
        broken = [name for name, value in own.items() if not math.isfinite(value)]
        if broken:
            kept = f"; checkpoints up to step {checkpoints.newest()} are kept" if checkpoints and checkpoints.newest() else ""
            raise Diverged(
                f"Training diverged: the {broken[0]} of step {step - ago} is not finite{kept}; "
                "try a lower train.learning_rate or train.clip_norm in a new workdir.",
                best,
            )


def _means(sums: list[dict[str, float]]) -> dict[str, float]:
    """Means over rows of the sums since the last log; the gradient's norm is averaged over steps."""
    total = {name: math.fsum(s[name] for s in sums) for name in sums[0]}
    norm = total.pop("gradient_norm") / len(sums)
    count = max(total.pop("count"), 1e-9)
    return {name: value / count for name, value in total.items()} | {"gradient_norm": norm}
