"""Many trainings as one compiled program: members differ in seed, labels, rates and initial encoder.

Parameters and optimiser states of the members are stacked and sharded over the devices; each device trains its share, and
the corpus lies on every device once, ragged. A member gets the rows, keys and rates it would get in `train.fit` alone.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from jax_emossl import mesh, preemption
from jax_emossl import predict as alone
from jax_emossl.checkpoint import Checkpoints, Snapshot, digest
from jax_emossl.data.batches import Batch, Segments
from jax_emossl.data.indices import Sampler, Selection, padded_length
from jax_emossl.errors import notice
from jax_emossl.model import valid_steps
from jax_emossl.objectives import Objective, Outputs, Params, assess
from jax_emossl.optimizer import Optimizer, Rates
from jax_emossl.train import NO_PROGRESS, Diverged, Fitted, fit, initial_params, judge, run_keys, stale, train_step

_MEMBERS, _EVERYWHERE = PartitionSpec("members"), PartitionSpec()
_MOST_MEMBERS = {"cpu": 16}  # more gain nothing there, and lose more work when interrupted
_MEMORY_SHARE = 0.5  # of a device's memory, to be shared by the members' states and activations


@dataclasses.dataclass(frozen=True)
class Member:
    """One training: the arguments that `train.fit` would get, were it run alone."""

    config: ml_collections.ConfigDict
    train: Segments
    valid: Segments
    encoder: Params | None = None
    background: Segments | None = None


def fit_members(
    objective: Objective,
    members: Sequence[Member],
    *,
    starts: Starts | None = None,
    checkpoints: Checkpoints | None = None,
    description: str = "sweep",
) -> list[Fitted | None]:
    """Trains all members at once and chooses each one's step on its validation segments, as `train.fit` does.

    Batches that `train.fit` pads to the length of their bucket are padded to the longest segment of the fold here, unless
    `train.crop` fixes both. Members must agree in all of `config.train` but the rates. A member's result does not depend on the
    others (of other folds: where `train.crop` is set). Fewer members than devices are trained one after the other, each on all
    devices and without checkpoints.

    Args:
      starts: shared by sweeps over the same objective, it spares them equal beginnings.
      checkpoints: saved at every evaluation; None keeps all in memory.

    Returns:
      Per member the fitted parameters (NumPy); None for one that diverged before its first evaluation.
    """
    settings = _common(members)
    devices = jax.device_count()
    if len(members) < devices:  # rather than let devices idle
        return [_alone(objective, member, f"{description} {i + 1}/{len(members)}") for i, member in enumerate(members)]
    kept, members = len(members), [*members, *members[: -len(members) % devices]]
    growth, evaluations = members[0].config.data.bucket_growth, -(-settings.steps // settings.eval_every)
    optimizer, sharding = Optimizer.make(settings), NamedSharding(_mesh(), _MEMBERS)
    starts = starts or Starts(objective)
    begun = starts.of(members)
    trains, valids = [train for _, _, train in begun], [member.valid for member in members]
    corpus = Resident([*trains, *valids])
    length = max(_length(member) for member in members)
    samplers = [Sampler(train.lengths, settings.batch_size, settings.crop, growth) for train in trains]
    validation = _Evaluation(corpus, valids, settings.batch_size, growth)
    rates, keys = (
        jax.device_put(_stack(x), sharding) for x in ([Rates.make(m.config.train) for m in members], [key for _, key, _ in begun])
    )
    params = jax.device_put(_stack([params for params, _, _ in begun]), sharding)
    opt_state = jax.jit(jax.vmap(optimizer.transformation().init), out_shardings=sharding)(params)
    progress = {"members": [NO_PROGRESS | {"diverged": False} for _ in members]}
    now = Snapshot(0, params, opt_state, jax.tree.map(jnp.copy, params), progress)
    if checkpoints:
        now = checkpoints.latest(now) or now
    step, params, opt_state, best, progress = now.step, now.params, now.opt_state, now.best, now.progress["members"]

    with tqdm(total=settings.steps * kept, initial=step * kept, desc=description, unit="step", leave=False, disable=None) as bar:
        while step < settings.steps and not all(_over(p, settings) for p in progress):
            stop = min(step + settings.eval_every, settings.steps)
            rows = [
                _stack([corpus.rows(t, s.indices(m.config.seed, at), length) for at in range(step, stop)])
                for t, s, m in zip(trains, samplers, members, strict=True)
            ]
            rows, first = jax.device_put(_stack(rows), sharding), jnp.int32(step)
            params, opt_state, sums = _train(objective, optimizer, length, corpus.steps, rates, keys, params, opt_state, first, rows)
            sums = jax.device_get(sums)
            finite = np.all([np.isfinite(value).all(1) for value in sums.values()], 0)
            bar.update((stop - step) * kept)
            step, before, progress = stop, progress, []
            for p, ok, valid, (outputs, own) in zip(before, finite, valids, validation.outputs(objective, params), strict=True):
                if _over(p, settings):
                    progress.append(p)
                elif ok:
                    progress.append(_judged(objective, p, outputs, own, valid, step))
                else:
                    notice(
                        f"{description}: the loss of member {len(progress)} is not finite before step {step}; its best step so far stands."
                    )
                    progress.append(p | {"diverged": True})
            improved = np.array([p["best_step"] != earlier["best_step"] for p, earlier in zip(progress, before, strict=True)])
            best = _choose(jax.device_put(improved, sharding), params, best)
            bar.set_postfix_str(f"evaluation {-(-step // settings.eval_every)}/{evaluations}")
            if checkpoints:
                checkpoints.save(Snapshot(step, params, opt_state, best, {"members": progress}), None)
            preemption.stop_if_requested()
    host = jax.device_get(best)
    return [
        None if p["best_step"] is None else Fitted(_member(host, i), p["best_step"], p["best_value"], p["calibration"])
        for i, p in enumerate(progress[:kept])
    ]


def predict_members(
    objective: Objective, params: Sequence[Params], segments: Sequence[Segments], batch_size: int, growth: float
) -> list[Outputs]:
    """The outputs of several parameters, each on segments of its own, as `predict.predict` gives them."""
    if len(params) < jax.device_count():
        return [alone.predict(objective, mesh.replicate(p), s, batch_size, growth) for p, s in zip(params, segments, strict=True)]
    kept, extra = len(params), -len(params) % jax.device_count()
    params, segments = [*params, *params[:extra]], [*segments, *segments[:extra]]
    evaluation = _Evaluation(Resident(segments), segments, batch_size, growth)
    placed = jax.device_put(_stack(params), NamedSharding(_mesh(), _MEMBERS))
    outputs = [
        objective.finish(host, outputs, own) for (outputs, host), own in zip(evaluation.outputs(objective, placed), segments, strict=True)
    ]
    return outputs[:kept]


def members_at_once(objective: Objective, member: Member) -> int:
    """How many members like this one fit the devices' memory, by an estimate; a multiple of the devices.

    A member needs its parameters four times (with both moments and the best so far) and, while it is trained, about 40
    values per model step, channel and layer, and six per attention score.
    """
    settings, model = member.config.train, member.config.model
    length = _length(member)
    example = member.train.gather(Selection(np.zeros(1, int), np.zeros(1, int), np.ones(1, np.float32), length))
    shapes = jax.eval_shape(lambda key: objective.init(key, jax.tree.map(jnp.asarray, example)), jax.random.key(0))
    state = 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    steps = settings.batch_size * length
    activations = 4 * model.layers * steps * (40 * model.width + 6 * model.heads * length)
    platform, devices = jax.devices()[0].platform, jax.device_count()
    free = _MEMORY_SHARE * _device_memory()
    together = free / state if platform == "cpu" else free / (state + activations)  # on CPU they take turns
    most = max(1, min(int(together), _MOST_MEMBERS.get(platform, 10**6) // devices))
    return most * devices


class Resident:
    """The model steps of all segments, one after another, on every device."""

    def __init__(self, parts: Sequence[Segments]):
        wholes = {id(part.whole): part.whole for part in parts}
        self._first, arrays, total = {}, [], 0
        for key, whole in wholes.items():
            self._first[key] = total + np.concatenate([[0], np.cumsum(whole.lengths)[:-1]])
            arrays.append(whole.all_steps)
            total += int(whole.lengths.sum())
        self._wholes = wholes  # kept alive: their ids are the keys
        self.steps: Float[Array, "n d"] = jax.device_put(np.concatenate(arrays), NamedSharding(_mesh(), _EVERYWHERE))

    def rows(self, segments: Segments, selection: Selection, length: int) -> Batch:
        """A batch whose features are named by their `first` step here; cut or padded to `length` steps."""
        selection = dataclasses.replace(selection, length=length)
        first = self._first[id(segments.whole)][segments.positions[selection.segments]] + selection.starts
        return {"first": first.astype(np.int32), **segments.gather_all_but_features(selection)}


class _Evaluation:
    """The predictions of all members, each on its own segments, in batches that they make together."""

    def __init__(self, corpus: Resident, parts: Sequence[Segments], batch_size: int, growth: float):
        plans = {id(part): list(Sampler(part.lengths, batch_size, growth=growth).in_order()) for part in parts}
        self._corpus, self._parts = corpus, parts
        self._plans = [plans[id(part)] for part in parts]
        self._batches = []
        for turn in range(max(map(len, self._plans))):
            selections = [plan[min(turn, len(plan) - 1)] for plan in self._plans]
            length = max(selection.length for selection in selections)
            rows = _stack([corpus.rows(part, selection, length) for part, selection in zip(parts, selections, strict=True)])
            self._batches.append((length, jax.device_put(rows, NamedSharding(_mesh(), _MEMBERS))))

    def outputs(self, objective: Objective, params: Params) -> list[tuple[dict[str, np.ndarray], Params]]:
        """Per member the outputs of its segments, not finished yet, and its parameters, all on the host."""
        outputs: list[dict[str, np.ndarray]] = [{} for _ in self._parts]
        for turn, (length, rows) in enumerate(self._batches):
            values = jax.device_get(_predict(objective, length, self._corpus.steps, params, rows))
            for i, (plan, part) in enumerate(zip(self._plans, self._parts, strict=True)):
                if turn < len(plan):
                    kept = plan[turn].segments[plan[turn].weight > 0]
                    for name, value in values.items():
                        own = value[i][: len(kept)]
                        outputs[i].setdefault(name, np.zeros((len(part), *own.shape[1:]), own.dtype))[kept] = own
        host = jax.device_get(params)
        return [(own, _member(host, i)) for i, own in enumerate(outputs)]


class Starts:
    """What members begin with; those with equal initial parameters share the view of their background."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._params: dict[tuple, Params] = {}
        self._outputs: dict[tuple, Outputs] = {}

    def of(self, members: Sequence[Member]) -> list[tuple[Params, Array, Segments]]:
        """Per member the initial parameters, the key of the steps, and the training segments with the objective's extra."""
        views = [(self.params(member), member.background or member.train) for member in members]
        outputs = functools.cache(lambda: self.outputs(views, members[0].config))  # where one member asks, all will
        begun = []
        for i, (member, (params, background)) in enumerate(zip(members, views, strict=True)):
            extra = self._objective.extra(params, member.train, background, lambda i=i: outputs()[i])
            begun.append((params, run_keys(member.config.seed)[1], member.train.with_extra(extra)))
        return begun

    def params(self, member: Member) -> Params:
        """A member's initial parameters, on the host."""
        background = member.background or member.train
        same = (member.config.seed, id(member.encoder), id(background))
        if same not in self._params:
            self._params[same] = jax.device_get(initial_params(self._objective, member.config, background, member.encoder))
        return self._params[same]

    def outputs(self, views: Sequence[tuple[Params, Segments]], config: ml_collections.ConfigDict) -> list[Outputs]:
        """`predict`'s outputs for each pair of initial parameters and segments; those not known yet are made together."""
        keys = [(id(segments), *digest(params).values()) for params, segments in views]
        missing = {key: view for key, view in zip(keys, views, strict=True) if key not in self._outputs}
        if missing:
            settings = config.train.batch_size, config.data.bucket_growth
            made = predict_members(self._objective, *zip(*missing.values(), strict=True), *settings)
            self._outputs.update(zip(missing, made, strict=True))
        return [self._outputs[key] for key in keys]


@functools.partial(jax.jit, static_argnames=("objective", "optimizer", "length"), donate_argnames=("params", "opt_state"))
def _train(objective, optimizer, length, corpus, rates, keys, params, opt_state, first, rows):
    """Trains every member by the steps whose batches are `rows` (M, K, B, ...); sums are (M, K)."""

    def member(corpus, rates, key, params, opt_state, first, rows):
        def one(state, xs):
            step, row = xs
            *state, sums = train_step.__wrapped__(objective, optimizer, rates, *state, step, _batch(corpus, row, length), key)
            return tuple(state), sums

        steps = first + jnp.arange(len(rows["weight"]))
        (params, opt_state), sums = jax.lax.scan(one, (params, opt_state), (steps, rows))
        return params, opt_state, sums

    return _each(member, (False, True, True, True, True, False, True))(corpus, rates, keys, params, opt_state, first, rows)


@functools.partial(jax.jit, static_argnames=("objective", "length"))
def _predict(objective, length, corpus, params, rows):
    return _each(lambda corpus, p, r: objective.predict(p, _batch(corpus, r, length)), (False, True, True))(corpus, params, rows)


@functools.partial(jax.jit, donate_argnames="old")
def _choose(chosen, new, old):
    """Per member `new` where `chosen`, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(chosen.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def _each(function: Callable, stacked: Sequence[bool]) -> Callable:
    """`function` of one member, for all members: every device does its share.

    An accelerator does its share in one go. A CPU core is full with one member, so there they take turns, which keeps the
    matrix products plain and in cache.
    """

    def share(*args):
        if jax.devices()[0].platform != "cpu":
            return jax.vmap(function, [0 if s else None for s in stacked])(*args)
        own = [a for a, s in zip(args, stacked, strict=True) if s]

        def one(own):
            rest = iter(own)
            return function(*(next(rest) if s else a for a, s in zip(args, stacked, strict=True)))

        return jax.lax.map(one, own)

    specs = tuple(_MEMBERS if s else _EVERYWHERE for s in stacked)
    return jax.shard_map(share, mesh=_mesh(), in_specs=specs, out_specs=_MEMBERS, check_vma=False)


def _batch(corpus: Float[Array, "n d"], rows: Batch, length: int) -> Batch:
    """The batch of `rows`, with its features (B, length, D) taken from the corpus."""
    rest = {name: value for name, value in rows.items() if name != "first"}
    features = corpus.at[rows["first"][:, None] + jnp.arange(length)].get(mode="clip")
    return {"features": jnp.where(valid_steps(rows["num_frames"], length)[..., None], features, 0), **rest}


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("members",))


def _stack(trees: Sequence[Any]) -> Any:
    if isinstance(jax.tree.leaves(trees[0])[0], np.ndarray):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _member(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], stacked)


def _judged(objective: Objective, progress: dict, outputs: Outputs, params: Params, valid: Segments, step: int) -> dict:
    """A member's progress after an evaluation."""
    value, calibration, _ = assess(objective, objective.finish(params, outputs, valid), valid.labels)
    return judge(progress, objective.selection, value, calibration, step)


def _over(progress: dict, settings: ml_collections.ConfigDict) -> bool:
    return progress["diverged"] or stale(progress, settings)


def _alone(objective: Objective, member: Member, description: str) -> Fitted | None:
    try:
        fitted = fit(
            objective, member.train, member.valid, member.config,
            encoder=member.encoder, background=member.background, description=description,
        )  # fmt: skip
    except Diverged as error:
        notice(str(error))
        fitted = error.best
    return fitted and dataclasses.replace(fitted, params=jax.device_get(fitted.params))


def _length(member: Member) -> int:
    """Model steps of a member's batches: that of its fold's longest segment, where nothing is cropped."""
    return member.config.train.crop or padded_length(int(member.train.whole.lengths.max()), member.config.data.bucket_growth)


def _common(members: Sequence[Member]) -> ml_collections.ConfigDict:
    """The settings on which all members agree."""
    own = ("strategy", "learning_rate", "encoder_factor", "probe_steps")

    def shared(member: Member) -> dict:
        return {name: value for name, value in member.config.train.items() if name not in own}

    if any(shared(member) != shared(members[0]) for member in members):
        raise ValueError(f"members of a sweep may differ in their seed and in {', '.join(own)} only")
    return members[0].config.train


def _device_memory() -> float:
    """Bytes of one device."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.device_count()
