"""SIGTERM and SIGINT as a request to stop: the loop finishes its step, saves, and the program exits with 75."""

import os
import signal
from collections.abc import Callable

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
_requested = False
_anywhere: Callable[[], bool] | None = None


class Preempted(Exception):
    """Raised by the loop once everything is saved."""


def install(anywhere: Callable[[], bool] | None = None) -> None:
    """From now on the first signal asks to stop and a second one ends the process at once.

    Of several processes `anywhere` says whether SIGTERM has come to any. JAX hears it there, and would be deaf to it with a handler of
    Python's; SIGINT becomes one.
    """
    global _anywhere
    _anywhere = anywhere
    for number in (signal.SIGINT,) if anywhere else (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


def requested() -> bool:
    """Whether a signal has asked to stop."""
    return _anywhere() if _anywhere else _requested


def stop_if_requested() -> None:
    """Raises Preempted where a signal has asked to stop: for work that leaves nothing behind before it is done."""
    if requested():
        raise Preempted


def _handle(number: int, _frame) -> None:
    global _requested
    if _requested:
        os._exit(128 + number)
    _requested = True
    if _anywhere:
        os.kill(os.getpid(), signal.SIGTERM)
