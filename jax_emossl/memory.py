"""How this process gets its memory, and gives back what it does not need."""

import ctypes
import mmap

import numpy as np
from jaxtyping import Float

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
_MOST_MAPPED = 2**28  # bytes of a file


def keep_freed() -> None:
    """Keeps freed memory for the next to ask, where the C library is glibc.

    On CPU, XLA asks for a step's working memory anew at every step, some ten megabytes that glibc would map and give back
    each time; the kernel's fresh pages then cost up to 40 % of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
            mallopt(parameter, value)


def give_back() -> None:
    """Gives back what is freed and kept, where the C library is glibc: before what needs memory in other pieces than what was done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


class Rows:
    """The rows of an array, read slice by slice; where they are mapped from a file, few of its pages stay this process's memory.

    They would add up to the whole file, which a container may count. The system's cache of files keeps what it has room for.
    """

    def __init__(self, array: Float[np.ndarray, "n f"]):
        self._array, self._read = array, 0

    def __getitem__(self, part: slice) -> Float[np.ndarray, "p f"]:
        own, file = np.asarray(self._array[part]), getattr(self._array, "_mmap", None)
        self._read += own.nbytes
        if file is not None and hasattr(mmap, "MADV_DONTNEED") and self._read > _MOST_MAPPED:
            file.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return own
