"""SIGTERM and SIGINT as a request to stop: the loop finishes its step, saves, and the program exits with 75."""

import os
import signal

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
_requested = False


class Preempted(Exception):
    """Raised by the loop once everything is saved."""


def install() -> None:
    """From now on the first signal asks to stop and a second one ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


def requested() -> bool:
    """Whether a signal has asked to stop."""
    return _requested


def stop_if_requested() -> None:
    """Raises Preempted where a signal has asked to stop: for work that leaves nothing behind before it is done."""
    if requested():
        raise Preempted


def _handle(number: int, _frame) -> None:
    global _requested
    if _requested:
        os._exit(128 + number)
    _requested = True
