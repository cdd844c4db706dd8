"""What every test runs under. It is in the environment, before JAX is imported, so that subprocesses have it too."""

import gc
import os
import pathlib
import sys

import pytest

_REPOSITORY = pathlib.Path(__file__).parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two devices, so that whatever is mapped over devices is tested with more than one. And most of the tests' time is the
# compiler's, whose last optimizations do not pay for programs that run once.
for _flag in (
    "--xla_force_host_platform_device_count=2",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
):
    if _flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
# Shapes must agree in rank: silent broadcasting has hidden more bugs than it has saved lines.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Compilation is most of the tests' time; the next run, or the next subprocess, has it from the disk.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_REPOSITORY / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    """Every compiled function takes memory mappings, of which Linux gives a process 65,530; past them XLA crashes."""
    yield
    if "jax" in sys.modules and _memory_mappings() > 30_000:
        if "alphallm.evaluation.compare" in sys.modules:
            sys.modules["alphallm.evaluation.compare"]._program.cache_clear()
        sys.modules["jax"].clear_caches()
        gc.collect()


def _memory_mappings() -> int:
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
