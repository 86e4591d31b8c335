import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("flags", "expected"), [("", "2"), ("--xla_force_host_platform_device_count=3", "3")])
def test_on_a_cpu_every_core_is_a_device_as_far_as_batches_divide(flags, expected):
    script = (
        "import os; os.sched_getaffinity = lambda _: {0, 1, 2}\n"
        "from jax_emossl import mesh; mesh.use_cpu_cores((32, 64))\n"
        "import jax; print(jax.device_count()); mesh.use_cpu_cores((3,)); print(jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, expected]  # once JAX has started, nothing changes
