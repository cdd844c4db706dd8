"""Device parallelism: the one file that knows of `pmap`.

Functions are written for one device with the axis name "data". Here they are mapped over the devices of all hosts; a
host gives and gets the arrays of its own devices: what is replicated and what is sharded both carry a leading axis of
local devices.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np

from alphallm.training import hosts
from alphallm.training.learner import AXIS


def num_cores() -> int:
    """How many cores this process may use: fewer than the machine has where it was pinned to some (taskset)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cores_as_devices(count: int):
    """Makes JAX see the CPU as `count` devices, unless XLA_FLAGS already says how many."""
    name = "--xla_force_host_platform_device_count"
    present = os.environ.get("XLA_FLAGS", "")
    if name not in present:
        os.environ["XLA_FLAGS"] = f"{present} {name}={count}".strip()


def keep_freed_memory():
    """Makes glibc keep the buffers that XLA's CPU backend frees; on other systems it does nothing.

    By default a large one goes back to the kernel and is cleared, page by page, when it is asked for again: a fifth of
    a learner's step (docs/profiling.md). The process keeps the most memory that it ever used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            mallopt(parameter, value)


def pmap(function: Callable, donate: Sequence[int] = ()) -> Callable:
    """The function on every device of every host; arguments and results have a leading axis of local devices."""
    return jax.pmap(function, axis_name=AXIS, donate_argnums=tuple(donate))


def replicate(tree):
    """A copy on every local device."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: _place(np.broadcast_to(np.asarray(x)[None], (count, *np.shape(x)))), tree)


def replicate_key(key: jax.Array) -> jax.Array:
    """A typed random key, the same on every local device."""
    return jax.random.wrap_key_data(replicate(jax.random.key_data(key)))


def shard(tree):
    """This host's part of the leading axis, split over its devices. The caller has checked that it divides."""
    num_hosts, host, devices = jax.process_count(), jax.process_index(), jax.local_device_count()

    def part(x):
        x = np.asarray(x)
        x = x.reshape(num_hosts, devices, -1, *x.shape[1:])[host]
        return _place(x)

    return jax.tree.map(part, tree)


def first(tree):
    """The first device's copy of what is the same on all of them, as host arrays."""
    # Not x[0]: indexing a sharded array gathers it first.
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def means(sums: dict[str, jax.Array]) -> dict[str, float]:
    """Each sum divided by its count, both over all devices of all hosts; 0 where there was nothing to count."""
    local = np.stack([np.sum(np.asarray(x, np.float64), 0) for x in sums.values()])
    return {
        name: float(total / max(count, 1e-9)) for name, (total, count) in zip(sums, hosts.total(local), strict=True)
    }


def gather(tree):
    """What `shard` split, whole again, as host arrays on all hosts."""
    return jax.tree.map(lambda x: hosts.gather(np.asarray(x).reshape(-1, *x.shape[2:])), tree)


def _place(x):
    # Placed where pmap wants it, so that donation works from the first call on (it ignores host arrays silently).
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS)))
