"""How a process takes a CPU: as many devices as fit the batches, and memory that is not given back."""

import os
import subprocess
import sys

import pytest

from alphallm.config import apply_overrides
from alphallm.train import best_device_count
from alphallm.training.config import Config

FAULTS = """
import resource
import numpy as np
from alphallm.training import parallel
{first}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.empty(2**24).fill(1)  # 128 MiB
before = faults()
for _ in range(20):
    np.empty(2**24).fill(1)
print(faults() - before)
"""


def faults(first: str = "") -> int:
    run = [sys.executable, "-c", FAULTS.format(first=first)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept():
    assert faults("parallel.keep_freed_memory()") < 100 < faults()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinities on this system")
def test_a_pinned_process_has_as_many_cores_as_it_was_pinned_to():
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{pinned}; from alphallm.training import parallel; print(parallel.num_cores())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_devices_divide_all_batches_and_their_parts():
    config = apply_overrides(
        Config(), {"training.problems_per_iteration": 128, "warm_start.batch_size": 64, "training.trees_per_step": 32}
    )
    assert [best_device_count(config, cores) for cores in (1, 2, 3, 8, 48)] == [1, 2, 2, 8, 32]
    in_parts = apply_overrides(config, {"optimizer.micro_batches": 8})
    assert [best_device_count(in_parts, cores) for cores in (1, 2, 3, 8)] == [1, 2, 2, 4]
