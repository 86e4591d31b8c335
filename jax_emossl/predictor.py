"""The predictor: outputs of one or many members over whole folds, on the devices."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jax_emossl import mesh as meshes
from jax_emossl.data.batches import Batch, Segments
from jax_emossl.data.indices import Selection, in_order
from jax_emossl.objectives import Objective, Outputs, Variables
from jax_emossl.resident import Resident, with_features


@functools.partial(jax.jit, static_argnames=("objective", "mesh"))
def _predict(objective: Objective, mesh: Mesh, steps, over, variables: Variables, batch: Batch) -> Outputs:
    def member(steps, over, variables, batch):
        return meshes.unless(over, lambda: (objective.predict(variables, with_features(steps, batch)),))[0]

    return meshes.each(member, mesh)(steps, over, variables, batch)


@functools.partial(jax.jit, static_argnames="objective")
def _finish(objective: Objective, i: int, variables: Variables, outputs: Outputs, basis: Int[Array, "s 3"]) -> Outputs:
    return objective.finish(meshes.member(variables, i), outputs, basis)


def predict_rows(
    objective: Objective, mesh: Mesh, variables: Variables, parts: Sequence[Sequence[Segments]], batch_size: int, growth: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[list[Outputs]]:  # fmt: skip
    """What an objective predicts by stacked variables (M, ...), each member's for one or more parts of its own, in their segments' order.

    The parts of a member are read as if they were one, which wastes less on padding. `resident` holds all the segments; without it,
    features are sent batch by batch. Of members that are `over` nothing is asked.
    """
    if objective.labelled:  # with and without constants, by which it does not predict, there would be two programs of everything
        variables = {"params": variables["params"]}
    gather = resident.gather if resident else Segments.gather
    steps = meshes.replicate(resident.steps, mesh) if resident else None  # where they are already
    ended = meshes.place_over(over or [False] * len(parts), mesh)
    lengths = [np.concatenate([part.lengths for part in own]) for own in parts]
    same = [tuple((part.whole, part.positions.tobytes()) for part in own) for own in parts]  # members that ask of the same share its rows
    outputs: list[Outputs] = [{} for _ in parts]

    def keep(selections: Sequence[Selection], made: Outputs) -> None:
        for name, values in made.items():
            for selection, own, length, value in zip(selections, outputs, lengths, meshes.fetch(values), strict=True):
                kept = selection.segments[selection.weight > 0]
                own.setdefault(name, np.zeros((len(length), *value.shape[1:]), value.dtype))[kept] = value[: len(kept)]

    before = None
    for selections in in_order(lengths, batch_size, growth, mesh.shape["data"]):
        asked = {key: (own, selection) for key, own, selection in zip(same, parts, selections, strict=True)}
        rows = {key: _gathered(gather, own, selection.part(*meshes.part(mesh))) for key, (own, selection) in asked.items()}
        batch = meshes.place_rows(meshes.stack([rows[key] for key in same]), mesh)
        made = _predict(objective, mesh, steps, ended, variables, batch)
        if before:  # the devices never wait for the host
            keep(*before)
        before = selections, made
    keep(*before)
    return [
        [{name: values[first:until] for name, values in made.items()} for first, until in itertools.pairwise(_ends(own))]
        for made, own in zip(outputs, parts, strict=True)
    ]


def _ends(parts: Sequence[Segments]) -> Int[np.ndarray, "n+1"]:
    """Where each of several parts begins, and the last ends, when they are counted one after another."""
    return np.cumsum([0, *map(len, parts)])


def _gathered(gather: Callable[[Segments, Selection], Batch], parts: Sequence[Segments], selection: Selection) -> Batch:
    """The rows of a selection of segments of several parts, which it counts one after another."""
    ends = _ends(parts)
    which = np.searchsorted(ends, selection.segments, side="right") - 1
    rows = []
    for i in np.unique(which):
        own = selection.rows(which == i)
        rows.append(gather(parts[i], dataclasses.replace(own, segments=own.segments - ends[i])))
    if len(rows) == 1:  # most often: features need not be copied
        return rows[0]
    place = np.argsort(np.argsort(which, kind="stable"))
    return {name: np.concatenate([own[name] for own in rows])[place] for name in rows[0]}


def finished(
    objective: Objective, variables: Variables, rows: Sequence[Outputs], whole: Sequence[Segments], parts: Sequence[Segments]
) -> list[dict[str, np.ndarray]]:
    """The finished outputs of some segments, of `rows` that `predict_rows` gives of the `whole` on which they are standardised."""
    made = meshes.fetch([_finish(objective, i, variables, own, part.basis) for i, (own, part) in enumerate(zip(rows, whole, strict=True))])
    return [{name: values[: len(part)] for name, values in own.items()} for own, part in zip(made, parts, strict=True)]


def with_basis(parts: Sequence[Segments]) -> list[Segments]:
    """Each with those others on which it is standardised; members may share theirs."""
    made = {part: part.with_basis() for part in parts}
    return [made[part] for part in parts]


def predict_stacked(
    objective: Objective, mesh: Mesh, variables: Variables, parts: Sequence[Segments], *sizes: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """The finished outputs of `predict_rows`, for which those on which the segments are standardised are encoded, too."""
    whole = with_basis(parts)
    rows = predict_rows(objective, mesh, variables, [(own,) for own in whole], *sizes, resident, over)
    return finished(objective, variables, [own for (own,) in rows], whole, parts)


def predict(
    objective: Objective, variables: Sequence[Variables], parts: Sequence[Segments], *sizes: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """As `predict_stacked`, of a list of variables; `sizes` are those of `predict_rows`."""
    mesh, number = meshes.make(len(variables)), len(variables)
    variables, parts, over = (meshes.padded(own, mesh) for own in (variables, parts, over or [False] * number))
    placed = meshes.place_members(meshes.stack(variables), mesh)
    return predict_stacked(objective, mesh, placed, parts, *sizes, resident=resident, over=over)[:number]
