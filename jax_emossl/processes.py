"""Several processes that train as one: each feeds its own devices, and the first alone has the workdir.

All of them run the same program in step. Whatever one of them finds out by itself (files, mistakes, signals) is made known to all before
it decides anything, since a process that went its own way would leave the others waiting. A process alone passes through here unchanged.
"""

import atexit
import collections
import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_emossl import __version__, preemption
from jax_emossl.errors import UserError

_PATIENCE = 45  # s until all processes have found one another
_SILENCE = 30  # s without a sign of life after which a process is taken to have ended
_FAREWELL = 60  # s that a process which has ended its work waits for the others
_GRACE = 2  # s that others go on after the first has found a mistake: without it they are aborted
_BEHIND = 2  # steps that the devices may be behind the host
_OF_LOSS = re.compile("gloo|heartbeat|unhealthy|unavailable|connection|coordination", re.IGNORECASE)


def join(coordinator: str | None, number: int | None, process: int | None) -> None:
    """Makes this process one of several, where the flags say so or, without any, a cluster that JAX knows (TPU pod, SLURM).

    To be called before JAX has started. Processes other than the first print nothing from now on.

    Raises:
      UserError: flags are missing or contradict one another, the cluster does not tell, or the processes have unlike devices.
    """
    devices = None
    if number == 1:
        return
    if (coordinator, number, process) == (None, None, None):
        coordinator, number, process, devices = _detected()
        if number in (None, 1):
            return
    if None in (coordinator, number, process):
        raise UserError("Several processes need --coordinator=HOST:PORT, --num_processes and --process_id, all three or none of them.")
    if not process < number:
        raise UserError(f"--process_id is {process}, but the {number} processes of --num_processes are counted from 0.")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator is '{coordinator}', but must be HOST:PORT, an address of process 0 that all others can reach.")
    _connect(coordinator, number, process, devices)
    counts = [sum(device.process_index == i for device in jax.devices()) for i in range(number)]
    if len(set(counts)) > 1:
        raise UserError(f"The processes have {', '.join(map(str, counts))} devices: give each the same number.")
    preemption.share(told_any)
    if not first():
        sys.stdout = open(os.devnull, "w")


def _detected() -> tuple:
    try:
        from jax._src.clusters import ClusterEnv  # `jax.distributed.initialize` does not tell how many processes it is to make

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of clusters that JAX could know, were something else installed
            return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, _PATIENCE)
    except Exception as error:  # each kind of cluster has its own
        raise UserError(
            f"The cluster does not tell which process this is ({' '.join(str(error).split())[:200]}): "
            "give --coordinator, --num_processes and --process_id, or --num_processes=1."
        ) from error


def _connect(coordinator: str, number: int, process: int, devices: Any) -> None:
    def give_up() -> None:
        print(
            f"error: Process {process} waited {_PATIENCE} s for the coordinator {coordinator} and all {number} processes: "
            "start every one of them, at an address of process 0 that all can reach.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    if process == 0:
        try:
            socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
        except (OSError, OverflowError) as error:  # JAX would break
            raise UserError(f"Process 0 cannot open the port of {coordinator}: give one that is free.") from error
    watch = threading.Timer(_PATIENCE, give_up)  # JAX's own timeout aborts the program
    watch.daemon = True
    watch.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            coordinator, number, process, devices,
            cluster_detection_method="deactivate", initialization_timeout=2 * _PATIENCE,
            heartbeat_timeout_seconds=_SILENCE, shutdown_timeout_seconds=_FAREWELL,
        )  # fmt: skip
    finally:
        watch.cancel()


def several() -> bool:
    """Whether this process is one of several; does not start JAX."""
    return jax.distributed.is_initialized()


def first() -> bool:
    """Whether this process is the one that has the workdir."""
    return not several() or jax.process_index() == 0


def part() -> tuple[int, int]:
    """Which part of every batch of one training this process feeds, and of how many; see `mesh.part` for several trainings."""
    return (jax.process_index(), jax.process_count()) if several() else (0, 1)


def exchanged(text: str) -> list[str]:
    """What every process says, in their order."""
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own))).ravel()
    said = multihost_utils.process_allgather(np.pad(own, (0, lengths.max() - len(own))))
    return [row[:length].tobytes().decode() for row, length in zip(said.reshape(len(lengths), -1), lengths, strict=True)]


class _Shared(UserError):
    """A mistake that all processes have heard of."""


@contextlib.contextmanager
def as_one() -> Iterator[None]:
    """A mistake that any process finds within is raised in all, once each has come to the end, or to where it is to hear of others."""
    if not several():
        yield
        return
    own = ""
    try:
        yield
    except _Shared:
        raise
    except UserError as error:
        own = str(error)
    said = exchanged(own)
    for process, sentence in enumerate(said):
        if sentence:
            raise _Shared(sentence if len(set(said)) == 1 else f"Process {process}: {sentence}")


def of_first(function: Callable[[], Any]) -> Any:
    """What `function` gives in the first process, where alone it is called, in all; of several it must be JSON."""
    if not several():
        return function()
    made = None
    with as_one():
        if first():
            made = function()
    return json.loads(exchanged(json.dumps(made))[0])


def arrays_of_first(tree: Any) -> Any:
    """The first process's NumPy arrays in all, bit by bit; those of the others tell shapes and types."""
    # As bytes, since they are added up to zeros on the way, which would take the sign of a zero.
    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(lambda array: np.frombuffer(array.tobytes(), np.uint8), tree))
    return jax.tree.map(lambda content, array: content.view(array.dtype).reshape(array.shape), sent, tree)


def tree_of_first(tree: Any) -> Any:
    """The first process's nested dicts of NumPy arrays in all, bit by bit; the others need not know what it has."""
    if not several():
        return tree

    def like(description: str) -> np.ndarray:
        dtype, *shape = description.split(",")
        return np.zeros(tuple(map(int, shape)), jnp.dtype(dtype))

    described = of_first(lambda: jax.tree.map(lambda array: ",".join([array.dtype.name, *map(str, array.shape)]), tree))
    return arrays_of_first(tree if first() else jax.tree.map(like, described))


def check_alike(own: Callable[[], dict[str, Any]]) -> None:
    """UserError in all processes where what they have (JSON) under some name differs, which says where."""
    if not several():
        return
    reference, *others = map(json.loads, exchanged(json.dumps(own())))
    for process, other in enumerate(others, 1):
        if differing := sorted(name for name in reference.keys() | other.keys() if reference.get(name) != other.get(name)):
            raise UserError(
                f"Process {process} differs from process 0 in {', '.join(differing)}: start all with the same command, code and data."
            )


def code() -> dict[str, str]:
    """What tells the programs of two processes apart."""
    content = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(file.read_bytes())
    return {"the version of JAX": jax.__version__, "the code of jax_emossl": f"{__version__} {content.hexdigest()}"}


_told: collections.deque[jax.Array] = collections.deque()


def told_any(own: bool, behind: int = _BEHIND) -> bool:
    """Whether any process had been told something, as this one says by `own`, so many calls ago: the same in all at the same call.

    The devices collect it in their turn, and what they have not come to yet is not waited for.
    """
    each, collect = _collected()
    _told.append(collect(jax.make_array_from_process_local_data(each, np.full(jax.local_device_count(), own))))
    ripe = [_told.popleft() for _ in range(len(_told) - behind)]
    return any(ripe)


@functools.cache
def _collected() -> tuple[NamedSharding, Callable]:
    """Where flags lie, one on each device, and whether any is set."""
    mesh = Mesh(np.array(jax.devices()), "devices")
    return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


@contextlib.contextmanager
def bound() -> Iterator[None]:
    """Where one of several processes breaks within, all end: they could only wait for it. Nothing is saved that was not."""
    try:
        yield
    except preemption.Preempted:
        raise  # an orderly end, in which each waits for the others
    except (UserError, OSError):  # perhaps of this process alone
        if several():
            atexit.register(_leave, 2)
        raise
    except Exception as error:
        if not several():
            raise
        lost = isinstance(error, jax.errors.JaxRuntimeError) and _OF_LOSS.search(str(error))
        if lost:
            detail = " ".join(str(error).split())[:200]
            print(f"error: Another process has ended ({detail}): run the same command again in all of them to go on.", file=sys.stderr)
        else:
            traceback.print_exc()
        _leave(1)  # a lost peer, too: it may have ended by a mistake, which a queue that starts such a job anew would repeat for ever


def _leave(code: int) -> None:
    """Ends this process without waiting for the others, the first one when they have had time to say the same."""
    time.sleep(_GRACE if first() else 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
