"""The predictor: outputs of one or many members over whole folds, on the devices."""

import functools
from collections.abc import Sequence

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
    objective: Objective, mesh: Mesh, variables: Variables, parts: Sequence[Segments], batch_size: int, growth: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """What an objective predicts by stacked variables (M, ...), each member's for segments of its own, in the segments' order.

    `resident` holds all the segments; without it, features are sent batch by batch. Of members that are `over` nothing is asked.
    """
    if objective.labelled:  # with and without constants, by which it does not predict, there would be two programs of everything
        variables = {"params": variables["params"]}
    gather = resident.gather if resident else Segments.gather
    steps = meshes.replicate(resident.steps, mesh) if resident else None  # where they are already
    ended = meshes.place_over(over or [False] * len(parts), mesh)
    outputs: list[dict[str, np.ndarray]] = [{} for _ in parts]

    def keep(selections: Sequence[Selection], made: Outputs) -> None:
        for name, values in made.items():
            for selection, own, part, value in zip(selections, outputs, parts, meshes.fetch(values), strict=True):
                kept = selection.segments[selection.weight > 0]
                own.setdefault(name, np.zeros((len(part), *value.shape[1:]), value.dtype))[kept] = value[: len(kept)]

    before = None
    for selections in in_order([part.lengths for part in parts], batch_size, growth, mesh.shape["data"]):
        rows = {
            part: gather(part, own.part(*meshes.part(mesh))) for part, own in dict(zip(parts, selections, strict=True)).items()
        }  # members may share theirs
        batch = meshes.place_rows(meshes.stack([rows[part] for part in parts]), mesh)
        made = _predict(objective, mesh, steps, ended, variables, batch)
        if before:  # the devices never wait for the host
            keep(*before)
        before = selections, made
    keep(*before)
    return outputs


def predict_stacked(
    objective: Objective, mesh: Mesh, variables: Variables, parts: Sequence[Segments], *sizes: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """The finished outputs of `predict_rows`, for which those on which the segments are standardised are encoded, too."""
    with_basis = {part: part.with_basis() for part in parts}  # members may share theirs
    whole = [with_basis[part] for part in parts]
    rows = predict_rows(objective, mesh, variables, whole, *sizes, resident, over)
    made = meshes.fetch([_finish(objective, i, variables, own, part.basis) for i, (own, part) in enumerate(zip(rows, whole, strict=True))])
    return [{name: values[: len(part)] for name, values in own.items()} for own, part in zip(made, parts, strict=True)]


def predict(
    objective: Objective, variables: Sequence[Variables], parts: Sequence[Segments], *sizes: float,
    resident: Resident | None = None, over: Sequence[bool] = (),
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """As `predict_stacked`, of a list of variables; `sizes` are those of `predict_rows`."""
    mesh, number = meshes.make(len(variables)), len(variables)
    variables, parts, over = (meshes.padded(own, mesh) for own in (variables, parts, over or [False] * number))
    placed = meshes.place_members(meshes.stack(variables), mesh)
    return predict_stacked(objective, mesh, placed, parts, *sizes, resident=resident, over=over)[:number]
