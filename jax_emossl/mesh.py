"""Two axes of devices: members of a sweep are shared out over `members`, the rows of their batches over `data`."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from jax_emossl import processes
from jax_emossl.errors import UserError

_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # Linux: bytes, or "max" for all


@functools.cache
def make(members: int) -> Mesh:
    """All devices, those of several processes too: as many as divide them go to the members, the rest to the rows of each."""
    devices = sorted(jax.devices(), key=lambda device: device.process_index)  # so that what each process has are neighbours
    shares = max(n for n in range(1, min(members, len(devices)) + 1) if len(devices) % n == 0)
    return Mesh(np.array(devices).reshape(shares, -1), ("members", "data"))


def use_cpu_cores(batch_sizes: Sequence[int]) -> None:
    """Where JAX runs on the CPU, makes one device of each core, as far as the batches can be shared by them equally.

    Small models leave cores idle within one device. Nothing changes once JAX has started, or where XLA_FLAGS says how many.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = max(n for n in range(1, cores + 1) if all(size % n == 0 for size in batch_sizes))
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)


def device_memory() -> int:
    """Bytes that a device can have; CPU devices share those of the machine, or of the container that it is."""
    if limit := (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"):
        return limit
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    contained = _CONTAINER.read_text().strip() if _CONTAINER.is_file() else "max"
    return physical if contained == "max" else min(physical, int(contained))


def padded(items: Sequence, mesh: Mesh) -> list:
    """Members, the first repeated, until the devices can share them equally."""
    return [*items, *[items[0]] * (-len(items) % mesh.shape["members"])]


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose arrays have a leading axis of members."""
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees[0]))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if on_device else np.stack(leaves), *trees)


def member(stacked: Any, i: int) -> Any:
    """One member's tree."""
    return jax.tree.map(lambda leaf: leaf[i], stacked)


def place_members(tree: Any, mesh: Mesh) -> Any:
    """Stacked values (M, ...), each member's on its devices."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec("members")))


def part(mesh: Mesh) -> tuple[int, int]:
    """Which part of every member's rows this process prepares, and of how many: all of them where processes share out members."""
    return processes.part() if mesh.shape["members"] == 1 else (0, 1)


def place_over(over: Sequence[bool], mesh: Mesh) -> Bool[Array, "m"] | None:
    """Which members are over, for `unless`; None of one alone, with which its training ends."""
    return place_members(np.array(over), mesh) if len(over) > 1 else None


def place_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Rows (M, B, ...), each member's shared out over its devices; of several processes, each gives those of its `part`."""
    sharding, (_, parts) = NamedSharding(mesh, PartitionSpec("members", "data")), part(mesh)
    if parts == 1:
        return _placed(batch, sharding)
    shapes = {name: (len(rows), parts * rows.shape[1], *rows.shape[2:]) for name, rows in batch.items()}
    return {name: jax.make_array_from_process_local_data(sharding, rows, shapes[name]) for name, rows in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same values on every device."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec()))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    if not processes.several():
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # it has been placed before
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])  # `device_put` would compare the processes

    return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
    """Arrays as NumPy's, whole in every process."""
    if processes.several():
        tree = jax.tree.map(lambda a: a if a.is_fully_replicated else multihost_utils.process_allgather(a, tiled=True), tree)
    return jax.device_get(tree)


def each(function: Callable, mesh: Mesh, replaced: int = 0) -> Callable:
    """`function(shared, *own)` of one member, for stacked members: every share of the devices does its own.

    An accelerator does its share in one go. A CPU core is full with one member, so there they take turns, which keeps the
    matrix products plain and in cache. So many values as are `replaced`, the first of `own`, are replaced by the first that the
    function gives, which then take their places in memory.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def share(shared, *own):
        if len(jax.tree.leaves(own)[0]) == 1:
            return jax.tree.map(lambda leaf: leaf[None], function(shared, *member(own, 0)))
        if on_cpu:
            return _in_turn(functools.partial(function, shared), own, replaced)
        return jax.vmap(functools.partial(function, shared))(*own)

    if mesh.shape["members"] == 1:
        return share

    def split(shared, *own):
        specs = PartitionSpec(), *[PartitionSpec("members")] * len(own)
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("members"), axis_names={"members"}, check_vma=False)(
            shared, *own
        )

    return split


def _in_turn(function: Callable, own: tuple, replaced: int) -> Any:
    """`function(*own)` of every member, one after another, see `each`."""
    if not replaced:
        return jax.lax.map(lambda one: function(*one), own)

    def turn(state: tuple, one: tuple) -> tuple[tuple, tuple]:
        i, rest = one
        made = function(*member(state, i), *rest)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return jax.tree.map(put, state, made[:replaced]), made[replaced:]

    state, rest = own[:replaced], own[replaced:]
    state, made = jax.lax.scan(turn, state, (jnp.arange(len(jax.tree.leaves(state)[0])), rest))
    return *state, *made


def unless(over: Bool[Array, ""] | None, function: Callable[[], tuple], *kept: Any) -> tuple:
    """What a member's function gives; where the member is `over`, `kept` in place of the first values and zeros for the rest.

    On a CPU, where members take turns, nothing is computed for one that is over. None: it never is.
    """
    if over is None:
        return function()
    rest = jax.eval_shape(function)[len(kept) :]
    return jax.lax.cond(over, lambda: (*kept, *jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), rest)), function)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1, together: int = 1) -> None:
    """Refuses a batch whose parts the devices cannot share equally, or which would part the rows that are to stay together."""
    devices, together = mesh.shape["data"], together if accumulate > 1 else 1
    if batch_size < 1 or batch_size % (math.lcm(devices, together) * accumulate):
        parts = f" times the {accumulate} parts of train.accumulate" if accumulate > 1 else ""
        rows = f", and of the {together} segments of objective.together times these parts" if together > 1 else ""
        raise UserError(f"train.batch_size is {batch_size}, but must be a positive multiple of the {devices} devices{parts}{rows}.")
