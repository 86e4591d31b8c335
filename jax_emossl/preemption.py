"""SIGTERM and SIGINT as a request to stop: the loop finishes its step, saves, and the program exits with 75."""

import os
import signal
from collections.abc import Callable

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
_requested = False
_told_any: Callable[..., bool] | None = None


class Preempted(Exception):
    """Raised by the loop once everything is saved."""


def install() -> None:
    """From now on the first signal asks to stop and a second one ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


def share(told_any: Callable[..., bool]) -> None:
    """From now on a signal to one of several processes asks all: `told_any` is that of `processes`."""
    global _told_any
    _told_any = told_any


def requested() -> bool:
    """Whether a signal has asked to stop; of several processes all ask equally often, and hear of it together, soon after."""
    return _told_any(_requested) if _told_any else _requested


def stop_if_requested() -> None:
    """Raises Preempted where a signal has asked to stop: for work that leaves nothing behind before it is done."""
    if _told_any(_requested, 0) if _told_any else _requested:
        raise Preempted


def _handle(number: int, _frame) -> None:
    global _requested
    if _requested:
        os._exit(128 + number)
    _requested = True
