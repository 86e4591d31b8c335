"""THE loop: one for every objective, for one training or many at once. The batch at step s is a function of (seed, s).

A training is a member. Members share the objective and all settings but their rates; a run alone is a sweep of one member.
Their parameters are stacked, and every member gets the rows, keys and rates that it would get alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jax_emossl import memory, metrics, preemption, processes
from jax_emossl import mesh as meshes
from jax_emossl.checkpoint import Checkpoints, Snapshot
from jax_emossl.data.batches import Batch, Segments, in_memory
from jax_emossl.data.indices import Sampler, padded_length
from jax_emossl.data.pipeline import tf_data
from jax_emossl.logs import Scalars
from jax_emossl.objectives import Objective, Outputs, Params, Variables, assess
from jax_emossl.optimizer import Optimizer, Rates
from jax_emossl.predictor import finished, predict_rows, predict_stacked, with_basis
from jax_emossl.resident import Resident, with_features

_LOADERS = {"memory": in_memory, "tf.data": tf_data}
_QUEUED = 2  # steps that wait for the device: fewer would let it idle, with more a signal to stop would be heeded late
_NO_PROGRESS = {"best_step": None, "best_value": None, "calibration": None, "stale": 0, "diverged": "", "evaluations": []}


@dataclasses.dataclass(frozen=True)
class Member:
    """One training.

    Attributes:
      seed: of batches, masks and dropout.
      train: segments of its batches.
      valid: segments on which its step is chosen.
      reference: training segments whose predictions give the constants; None where there are none.
      params: initial parameters.
      rates: its learning rate, and when its encoder learns.
      crop: longest piece of a segment, in model steps; 0 = whole segments.
      constants: initial ones of a pretext task.
    """

    seed: int
    train: Segments
    valid: Segments
    reference: Segments | None
    params: Params
    rates: Rates
    crop: int
    constants: Params = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A member's variables (NumPy) at its best step by validation, with the value of the selection metric there.

    All are None where it diverged before its first evaluation; `diverged` says how it did, if it did. `evaluations` are the steps that
    were validated, with the value of each, and `outputs` what it says of its validation segments at its best step.
    """

    variables: Variables | None
    step: int | None
    value: float | None
    calibration: Any
    diverged: str
    evaluations: Sequence[tuple[int, float]] = ()
    outputs: Outputs | None = None


def run_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial parameters and of the steps."""
    return tuple(jax.random.split(jax.random.key(seed)))


def fit(
    objective: Objective,
    members: Sequence[Member],
    config: ml_collections.ConfigDict,
    *,
    resident: Resident | None = None,
    checkpoints: Checkpoints | None = None,
    scalars: Callable[[int], Scalars] | None = None,
    description: str = "training",
    advance: Callable[[float], None] = lambda share: None,
) -> list[Fitted]:
    """Trains all members and chooses each one's step on its validation segments; resumes from `checkpoints` where it holds any.

    A batch is padded to its bucket's length, those of several members to the longest among them: since nothing depends on padding, masks
    and dropout included, a member is the same training alone.

    Args:
      config: of any member; `data` and `train` are read.
      resident: holds all the members' segments; without it, features are sent batch by batch.
      checkpoints: saved at evaluations, as they are due; None keeps all in memory.
      scalars: makes the log of a run of one member that (re)starts after the given step.
      advance: is told what share of the steps was taken since it was told last.

    Raises:
      UserError: the batch does not fit the devices, or the validation fold does not define the selection metric.
      Preempted: a signal asked to stop; the step is saved where there are checkpoints.
    """
    memory.give_back()
    settings, mesh, real = config.train, meshes.make(len(members)), len(members)
    run = _Run.of(objective, meshes.padded(members, mesh), config, mesh, resident)
    now = run.begin()
    if checkpoints:
        like = run.whole(now)
        with processes.as_one():
            now = checkpoints.latest(like) or like
        now = run.as_first(now)
    log = scalars(now.step) if scalars else None
    running: list[tuple[int, dict]] = []  # steps whose sums are still on the device
    outputs: list[Outputs | None] = [None] * len(run.members)  # as they are in `Fitted`, but not from before a run was resumed
    due = False  # whether they are to be logged
    advance(now.step / settings.steps)
    with tqdm(total=settings.steps, initial=now.step, desc=description, unit="step", leave=False, disable=None) as bar:
        for batch in run.batches(now.step, settings.steps if run.alive(now) else now.step):
            now, sums = run.advance(now, batch)
            bar.update()
            advance(1 / settings.steps)
            if due:  # looked at only now, so that the device did not wait
                now, running = run.settled(now, running, log, bar, due)
            running, last = [*running, (now.step, sums)], now.step == settings.steps
            jax.block_until_ready(running[:-_QUEUED][-1:])
            evaluated, preempted = last or now.step % settings.eval_every == 0, preemption.requested()
            due = bool(log) and (last or now.step % settings.log_every == 0)
            if evaluated or preempted:
                now, running = run.settled(now, running, log, bar, due)
                due = False
            if evaluated and run.sound(now):
                now, made = run.evaluated(now, log)
                outputs = [
                    own if best == now.step else before for own, best, before in zip(made, run.best_steps(now), outputs, strict=True)
                ]
            if checkpoints and (preempted or evaluated and checkpoints.due()) and run.sound(now):
                checkpoints.save(run.whole(now))
            if preempted and run.sound(now):
                raise preemption.Preempted
            if not run.alive(now):
                break
    if log:
        log.close()
    best = meshes.fetch(now.best)
    fields = ("best_step", "best_value", "calibration", "diverged", "evaluations")
    own = [[progress[field] for field in fields] for progress in now.progress["members"][:real]]
    outputs = run.completed(now, outputs)
    return [Fitted(None if step is None else meshes.member(best, i), step, *rest, outputs[i]) for i, (step, *rest) in enumerate(own)]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same while members are trained; the methods are the parts of `fit`."""

    objective: Objective
    optimizer: Optimizer
    members: Sequence[Member]
    config: ml_collections.ConfigDict
    mesh: Mesh
    resident: Resident | None
    fixed: tuple[Rates, jax.Array]  # stacked: rates, and keys of the steps

    @classmethod
    def of(cls, objective, members, config, mesh, resident) -> Self:
        meshes.check_batch_size(config.train.batch_size, mesh, config.train.accumulate, objective.together)
        fixed = meshes.stack([(m.rates, run_keys(m.seed)[1]) for m in members])
        return cls(objective, Optimizer.make(config.train), members, config, mesh, resident, meshes.place_members(fixed, mesh))

    def begin(self) -> Snapshot:
        params = meshes.place_members(meshes.stack([member.params for member in self.members]), self.mesh)
        opt_state = meshes.place_members(_init(self.optimizer, self.mesh, params), self.mesh)
        progress = {"members": [_NO_PROGRESS] * len(self.members), "unlogged": []}
        constants = meshes.place_members(meshes.stack([member.constants for member in self.members]), self.mesh)
        variables, _ = self.read({"params": params, "constants": constants}, [()] * len(self.members))
        return Snapshot(0, variables, opt_state, jax.tree.map(jnp.copy, variables), progress)

    def whole(self, now: Snapshot) -> Snapshot:
        """As it is saved: of several processes, which have some members each, all that they have, off the devices."""
        if not processes.several():
            return now
        return dataclasses.replace(now, **meshes.fetch(now.arrays))

    def as_first(self, now: Snapshot) -> Snapshot:
        """What the first of several processes has restored or made anew, in all of them."""
        if not processes.several():
            return now
        step, progress = processes.of_first(lambda: (now.step, now.progress))
        state = processes.arrays_of_first(now.arrays)
        return Snapshot(step, **meshes.place_members(state, self.mesh), progress=progress)

    def over(self, now: Snapshot) -> list[bool]:
        """Which members are no longer trained."""
        return [_over(own, self.config.train) for own in now.progress["members"]]

    def read(
        self, variables: Variables, others: Sequence[Sequence[Segments]], over: Sequence[bool] = ()
    ) -> tuple[Variables, list[list[Outputs]]]:
        """Variables whose constants, of objectives with a reference, are those of the encoder as it is now, and rows of others, not finished.

        Each member's reference and its `others` are read in one pass.
        """
        references = [() if member.reference is None else (member.reference,) for member in self.members]
        parts = [(*own, *rest) for own, rest in zip(references, others, strict=True)]
        if not any(parts):
            return variables, []
        made = predict_rows(self.objective, self.mesh, variables, parts, *self.sizes, self.resident, over)
        if all(references):
            # By recordings, their number varies: few shapes to compile.
            rows = padded_length(max(len(part) for (part,) in references), self.sizes[1])
            own = [
                self.objective.constants({name: _filled(values, rows, 0) for name, values in first.items()}, _filled(part.basis, rows, -1))
                for (first, *_), (part,) in zip(made, references, strict=True)
            ]
            variables = {"params": variables["params"], "constants": meshes.place_members(meshes.stack(own), self.mesh)}
        return variables, [said[len(own) :] for said, own in zip(made, references, strict=True)]

    @property
    def sizes(self) -> tuple[int, float]:
        return self.config.train.batch_size, self.config.data.bucket_growth

    def batches(self, step: int, stop: int) -> Iterator[Batch]:
        """The batches (M, B, ...) of steps step..stop-1, placed."""
        if step == stop:
            return
        growth, together = self.config.data.bucket_growth, self.objective.together
        samplers = [
            Sampler(m.train.lengths, self.config.train.batch_size, m.crop, growth, m.train.basis[:, 1], together, meshes.part(self.mesh))
            for m in self.members
        ]
        own = zip(self.members, samplers, strict=True)
        if self.resident:
            feeds = [_places(self.resident, m, s, range(step, stop)) for m, s in own]
        else:
            load = _LOADERS[self.config.data.loader]
            feeds = [load(m.train, s, m.seed, step, stop) for m, s in own]
        for rows in zip(*feeds, strict=True):
            yield meshes.place_rows(meshes.stack(_padded_alike(rows)), self.mesh)

    def advance(self, now: Snapshot, batch: Batch) -> tuple[Snapshot, dict]:
        """After one more step, and its sums (M,), still on the devices; nothing is sent to or fetched from them unasked."""
        steps = self.resident.steps if self.resident else None
        shared = meshes.replicate((np.int32(now.step), steps), self.mesh)  # steps are there already
        over = meshes.place_over(self.over(now), self.mesh)
        with jax.transfer_guard("disallow"):
            variables, opt_state, sums = _step(
                self.objective, self.optimizer, self.mesh, shared, over, *self.fixed, now.variables, now.opt_state, batch
            )
        return dataclasses.replace(now, step=now.step + 1, variables=variables, opt_state=opt_state), sums

    def settled(self, now: Snapshot, running: list, log: Scalars | None, bar: tqdm, due: bool) -> tuple[Snapshot, list]:
        """Fetches sums: marks members that diverged, and writes the log where that is due."""
        progress = {**now.progress, "members": list(now.progress["members"])}
        for step, sums in [(step, meshes.fetch(sums)) for step, sums in running]:
            for i, own in enumerate(progress["members"]):
                broken = [name for name, values in sums.items() if not math.isfinite(values[i])]
                if broken and not _over(own, self.config.train):
                    progress["members"][i] = {**own, "diverged": f"the {broken[0]} of step {step} is not finite"}
            if log:
                progress["unlogged"] = [*progress["unlogged"], {name: float(values[0]) for name, values in sums.items()}]
        now = dataclasses.replace(now, progress=progress)
        if due and self.sound(now):
            means = _means(progress["unlogged"])
            progress["unlogged"] = []
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            log.write(running[-1][0], {f"train/{name}": value for name, value in means.items()})
        return now, []

    def completed(self, now: Snapshot, outputs: Sequence[Outputs | None]) -> list[Outputs | None]:
        """What members say at their best steps, made anew where that was not since the run was resumed."""
        there = [own is not None or best is None for own, best in zip(outputs, self.best_steps(now), strict=True)]
        made = outputs
        if not all(there):
            valid = [member.valid for member in self.members]
            made = predict_stacked(self.objective, self.mesh, now.best, valid, *self.sizes, resident=self.resident, over=there)
        return [own if known else new for own, known, new in zip(outputs, there, made, strict=True)]

    def best_steps(self, now: Snapshot) -> list[int | None]:
        return [own["best_step"] for own in now.progress["members"]]

    def evaluated(self, now: Snapshot, log: Scalars | None) -> tuple[Snapshot, list[Outputs]]:
        """After the validation of every member that is still trained, and what they say there."""
        over = self.over(now)
        valid = [member.valid for member in self.members]
        whole = with_basis(valid)
        variables, rows = self.read(now.variables, [(own,) for own in whole], over)
        outputs = finished(self.objective, variables, [own for (own,) in rows], whole, valid)
        judged = []
        for member, own, made in zip(self.members, now.progress["members"], outputs, strict=True):
            broken = [name for name, values in made.items() if not np.isfinite(values.sum())]
            if broken and not _over(own, self.config.train):
                own = {**own, "diverged": f"a value of {broken[0]} at step {now.step} is not finite on the validation fold"}
            if not _over(own, self.config.train):
                value, calibration, report = assess(self.objective, made, member.valid.labels)
                own = _judge(own, self.objective.selection, value, calibration, now.step)
            judged.append(own)
        judged = processes.of_first(lambda: judged)  # the last digits of others' may differ
        improved = np.array([own["best_step"] == now.step for own in judged])
        best = _choose(meshes.place_members(improved, self.mesh), variables, now.best)
        now = dataclasses.replace(now, variables=variables, best=best, progress={**now.progress, "members": judged})
        if log and self.sound(now):
            log.write(now.step, {f"valid/{n}": v for n, v in report.items() if isinstance(v, float)})
        return now, outputs

    def alive(self, now: Snapshot) -> bool:
        """Whether any member is still to be trained."""
        return not all(self.over(now))

    def sound(self, now: Snapshot) -> bool:
        """Whether any member has not diverged."""
        return not all(own["diverged"] for own in now.progress["members"])


def _padded_alike(batches: Sequence[Batch]) -> list[Batch]:
    """Batches of one length, that of the longest."""
    name = "places" if "places" in batches[0] else "features"
    length = max(batch[name].shape[1] for batch in batches)
    missing = [[(0, length - n if axis == 1 else 0) for axis, n in enumerate(batch[name].shape)] for batch in batches]
    return [{**batch, name: np.pad(batch[name], own)} for batch, own in zip(batches, missing, strict=True)]


def _filled(values: np.ndarray, rows: int, value: float) -> np.ndarray:
    """So many rows, the last of them filler."""
    return np.pad(values, [(0, rows - len(values)), *[(0, 0)] * (values.ndim - 1)], constant_values=value)


def _places(resident: Resident, member: Member, sampler: Sampler, steps: range) -> Iterator[Batch]:
    for step in steps:
        yield resident.gather(member.train, sampler.indices(member.seed, step))


@functools.partial(jax.jit, static_argnames=("optimizer", "mesh"))
def _init(optimizer: Optimizer, mesh: Mesh, params: Params) -> Any:
    return meshes.each(lambda _, params: optimizer.transformation().init(params), mesh)((), params)


@functools.partial(jax.jit, static_argnames=("objective", "optimizer", "mesh"), donate_argnames=("variables", "opt_state"))
def _step(objective, optimizer, mesh, shared, over, rates, keys, variables, opt_state, batch):
    """One step of every member that is not over; all that follows `shared` is stacked."""

    def member(shared, variables, opt_state, over, rates, key, batch):
        def trained():
            step, steps = shared
            return train_step(objective, optimizer, rates, key, variables, opt_state, step, with_features(steps, batch))

        return meshes.unless(over, trained, variables, opt_state)

    *state, sums = meshes.each(member, mesh, replaced=2)(shared, variables, opt_state, over, rates, keys, batch)
    # They stay where they are, whatever the compiler would like better.
    return *jax.lax.with_sharding_constraint(state, NamedSharding(mesh, PartitionSpec("members"))), sums


def train_step(objective: Objective, optimizer: Optimizer, rates: Rates, key, variables: Variables, opt_state, step, batch):
    """One step of one member: the gradient of the global sum over the global count, however the batch is sharded or cut into parts."""
    constants, progress = variables["constants"], (step + 1) / optimizer.steps

    def part(batch: Batch, key: jax.Array) -> tuple[Params, dict[str, jax.Array]]:
        def summed(params):
            total, count, scalars = objective.loss({"params": params, "constants": constants}, batch, key, progress)
            return total, {"loss": total, **scalars, "count": count}

        return jax.grad(summed, has_aux=True)(variables["params"])

    gradients, sums = _added_up(part, batch, jax.random.fold_in(key, step), optimizer.accumulate, objective.together)
    gradients = jax.tree.map(lambda g: g / jnp.maximum(sums["count"], 1e-9), gradients)
    params, opt_state = optimizer.apply(gradients, opt_state, variables["params"], rates, step)
    constants = objective.follow({"params": params, "constants": constants}, progress)
    return {"params": params, "constants": constants}, opt_state, {**sums, "gradient_norm": optax.global_norm(gradients)}


def _added_up(function: Callable, batch: Batch, key: jax.Array, parts: int, together: int) -> Any:
    """The sum of `function` over so many parts of a batch, one after another, each with a key of its own; rows stay `together`."""
    if parts == 1:
        return function(batch, key)
    # Every part takes rows from all over the batch, and so of every device.
    cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, together, *x.shape[1:]), 1, 0).reshape(parts, -1, *x.shape[1:]), batch)
    keys = jax.random.split(key, parts)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, meshes.member(cut, 0), keys[0]))
    return jax.lax.scan(lambda total, own: (jax.tree.map(jnp.add, total, function(*own)), None), nothing, (cut, keys))[0]


@functools.partial(jax.jit, donate_argnames="old")
def _choose(chosen, new, old):
    """Per member `new` where `chosen`, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(chosen.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def _over(progress: dict, settings: ml_collections.ConfigDict) -> bool:
    """Whether a member has diverged or early stopping has ended it."""
    return bool(progress["diverged"]) or 0 < settings.patience <= progress["stale"]


def _judge(progress: dict, metric: str, value: float, calibration: Any, step: int) -> dict:
    """Progress after an evaluation: all there were, the best step so far, and for how many evaluations it has stood."""
    progress = {**progress, "evaluations": [*progress["evaluations"], [step, value]]}
    if metrics.better(metric, value, progress["best_value"]):
        return {**progress, "best_step": step, "best_value": value, "calibration": calibration, "stale": 0}
    return {**progress, "stale": progress["stale"] + 1}


def _means(sums: list[dict[str, float]]) -> dict[str, float]:
    """Means over rows of the sums since the last log; the gradient's norm is averaged over steps."""
    total = {name: math.fsum(s[name] for s in sums) for name in sums[0]}
    norm = total.pop("gradient_norm") / len(sums)
    count = max(total.pop("count"), 1e-9)
    return {name: value / count for name, value in total.items()} | {"gradient_norm": norm}
