import platform
import subprocess
import sys

import pytest

_ASK = """
import resource, numpy as np
from jax_emossl import memory
{keep}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults(); np.ones(4 << 20); after = faults()
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps memory its own way")
def test_freed_memory_is_used_again_without_the_kernel():
    def fresh_pages(keep):
        return int(subprocess.run([sys.executable, "-c", _ASK.format(keep=keep)], capture_output=True, text=True, check=True).stdout)

    assert fresh_pages("memory.keep_freed()") < 100 < fresh_pages("")
