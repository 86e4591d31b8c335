import ctypes
import mmap
import os
import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_emossl import memory

_ASK = """
import resource, numpy as np
from jax_emossl import memory
{keep}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults(); np.ones(4 << 20); after = faults()
print(after - before)
"""


def _mapped_megabytes(file: Path) -> float:
    """Of a file's pages, those that count as this process's memory."""
    found = re.search(rf"{re.escape(str(file))}\n(?:.*\n)*?Rss:\s+(\d+) kB", Path("/proc/self/smaps").read_text())
    return int(found[1]) / 1024


_FREED = """
import re
import numpy as np
from pathlib import Path
from jax_emossl import memory

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

memory.keep_freed()
before, pieces = resident(), [np.ones(2**20) for _ in range(25)]  # 8 MB each
pieces = pieces[-1:]
kept = resident()
memory.give_back()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps memory its own way")
def test_freed_memory_is_used_again_without_the_kernel():
    def fresh_pages(keep):
        return int(subprocess.run([sys.executable, "-c", _ASK.format(keep=keep)], capture_output=True, text=True, check=True).stdout)

    assert fresh_pages("memory.keep_freed()") < 10 < fresh_pages("")  # 32 MB are 16 pages of the largest sort


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps memory its own way")
@pytest.mark.parametrize(
    ("asked", "starts", "left"),
    [
        ("", 2, memory._TUNABLES),
        ("glibc.rtld.nns=4", 2, f"glibc.rtld.nns=4:{memory._TUNABLES}"),
        ("glibc.malloc.arena_max=3", 1, "glibc.malloc.arena_max=3"),
    ],
)
def test_a_program_starts_anew_once_unless_its_user_says_how_memory_is_kept(asked, starts, left):
    code = (
        "import os; from jax_emossl import memory; print(os.getpid(), flush=True); memory.keep_freed(); print(os.environ['GLIBC_TUNABLES'])"
    )
    environment = os.environ | {"GLIBC_TUNABLES": asked}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *processes, said = made.stdout.split()
    assert (len(processes), len(set(processes)), said) == (starts, 1, left)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_is_freed_is_kept_until_it_is_given_back():
    made = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    kept, left = map(float, made.stdout.split())
    assert kept > 180 and 6 < left < 40


@pytest.mark.skipif(not (hasattr(mmap, "MADV_DONTNEED") and Path("/proc/self/smaps").exists()), reason="the system does not tell")
def test_a_mapped_file_that_is_read_through_does_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MOST_MAPPED", 2**22)
    file = tmp_path / "frames.npy"
    np.save(file, np.random.default_rng(0).normal(size=(2**17, 64)).astype(np.float32))  # 32 MB
    mapped = np.load(file, mmap_mode="r")
    rows, expected = memory.Rows(mapped), np.load(file)
    for first in range(0, 2**17, 1000):
        np.testing.assert_array_equal(rows[first : first + 1000], expected[first : first + 1000])
    assert _mapped_megabytes(file) < 12
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[:1000], expected[:1000])
    mapped.sum()
    assert _mapped_megabytes(file) > 30  # read otherwise, all of it would stay


def test_rows_in_memory_are_read_as_they_are(monkeypatch):
    monkeypatch.setattr(memory, "_MOST_MAPPED", 0)
    array = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(memory.Rows(array)[1:3], array[1:3])
