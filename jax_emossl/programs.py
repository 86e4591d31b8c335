"""Compiled programs: in a folder from one run to the next, in memory as long as they may be needed again."""

import hashlib
import platform
from pathlib import Path

import jax

from jax_emossl.data.corpora import cache_dir

_WORTH_KEEPING = 0.1  # s of compilation


def keep_compiled() -> None:
    """Keeps them in $EMOSSL_CACHE/xla, one folder for each kind of processor, unless JAX_COMPILATION_CACHE_DIR names another.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Code that XLA made for one CPU may fail on another, and JAX does not tell CPUs apart.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla" / _processor()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def forget() -> None:
    """Drops those in memory, which take some 10 MB each; one that is needed again is read from the folder, or compiled."""
    jax.clear_caches()


def _processor() -> str:
    """Machine and, where Linux tells them, what its CPU can do, as a name for a folder."""
    said = Path("/proc/cpuinfo")
    lines = said.read_text(errors="replace").splitlines() if said.exists() else [platform.processor()]
    abilities = sorted({line for line in lines if line.startswith(("flags", "Features"))} or {lines[0]})
    return f"{platform.machine()}-{hashlib.sha256(''.join(abilities).encode()).hexdigest()[:12]}"
