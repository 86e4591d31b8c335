"""One axis of devices, `data`: rows of a batch are sharded over it, everything else is replicated."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_emossl.errors import UserError


@functools.cache
def data_mesh() -> Mesh:
    """All devices of all processes."""
    return Mesh(np.array(jax.devices()), ("data",))


def use_cpu_cores(batch_sizes: Sequence[int]) -> None:
    """Where JAX runs on the CPU, makes one device of each core, as far as the batches can be shared by them equally.

    Small models leave cores idle within one device. Nothing changes once JAX has started, or where XLA_FLAGS says how many.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = max(n for n in range(1, cores + 1) if all(size % n == 0 for size in batch_sizes))
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)


def shard(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows, placed on its devices as its part of the global batch."""
    sharding = NamedSharding(data_mesh(), PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def replicate(tree: Any) -> Any:
    """The same values on every device."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def gather(rows: jax.Array) -> np.ndarray:
    """All rows of a sharded array, on every process."""
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    return np.asarray(rows)


def process() -> tuple[int, int]:
    """This process's number and the number of processes."""
    return jax.process_index(), jax.process_count()


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch that the devices cannot share equally."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise UserError(f"train.batch_size is {batch_size}, but must be a positive multiple of the {devices} devices.")
