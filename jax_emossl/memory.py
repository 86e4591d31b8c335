"""How this process gets its memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed() -> None:
    """Keeps freed memory for the next to ask, where the C library is glibc.

    On CPU, XLA asks for a step's working memory anew at every step, some ten megabytes that glibc would map and give back
    each time; the kernel's fresh pages then cost up to 40 % of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
            mallopt(parameter, value)
