"""How this process gets its memory, and gives back what it does not need."""

import ctypes
import mmap
import os
import sys

import numpy as np
from jaxtyping import Float

_MOST_MAPPED = 2**28  # bytes of a file
_TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_max": 0,
        "trim_threshold": 2**40,
        "top_pad": 2**26,  # the size of a thread's heap, which would be given back whenever it is free
        "arena_max": 2 * (os.cpu_count() or 1),  # each keeps what it has freed; with one alone, threads would wait for one another
    }.items()
)


def keep_freed() -> None:
    """Starts this program anew, once, with freed memory kept for the next to ask and in large pages, where the C library is glibc.

    On CPU, XLA asks for a step's working memory anew at every step, some ten megabytes that glibc would map and give back
    each time; the kernel's fresh pages then cost up to 40 % of a training step. glibc reads such settings when a program starts.
    """
    asked = os.environ.get("GLIBC_TUNABLES", "")
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()) and "glibc.malloc." not in asked:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [asked, _TUNABLES]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
