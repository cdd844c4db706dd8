"""Clocks and counters: seconds of a call, compilations, the matrix-product peak, memory."""

import contextlib
import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass
class Compilations:
    """What XLA compiled since this was last reset."""

    number: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts what is compiled inside the block; a program found in JAX's persistent cache counts too."""
    found = Compilations()

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.number += 1
            found.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians over the repeats of a compiled call."""

    seconds: float  # on the wall's clock.
    cpu_seconds: float  # of all threads of this process: what other processes take is not in it.
    repeats: list[float]


def timed(function: Callable, *arguments, repeats: int = 3) -> Timing:
    """The call, which is made once more before, so that nothing is compiled in what is measured."""
    jax.block_until_ready(function(*arguments))
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return Timing(statistics.median(wall), statistics.median(cpu), wall)


def matrix_peak(repeats: int = 7) -> float:
    """FLOP/s of float32 matrix products on all local devices at once, the best of several sizes and repeats."""
    best, devices = 0.0, jax.local_device_count()
    for size in (512, 1024, 2048):
        x = jnp.full((devices, size, size), 1e-3)
        product = jax.pmap(lambda a: a @ a)
        jax.block_until_ready(product(x))
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(product(x))
            best = max(best, 2 * devices * size**3 / (time.perf_counter() - began))
    return best


def peak_memory() -> int:
    """Bytes: of the accelerator where it tells, else of this process."""
    statistics_ = jax.local_devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics_.get("peak_bytes_in_use", resident)
