"""Takes a profile of a compiled function and reads it without a viewer: where the device's time went.

docs/profiling.md says what can be seen in it, and how to look at the file itself.
"""

import collections
import glob
import os
import re
import shutil
import tempfile
from typing import Any

import jax

from alphallm.display import print_table


def take(compiled: Any, arguments: tuple[Any, ...], stem: str) -> dict[str, Any]:
    """Takes and reads a profile of a call of a compiled function; keeps it as STEM.xplane.pb and STEM.trace.json.gz."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*arguments))
        for path in glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.*")):
            shutil.copy(path, f"{stem}.{os.path.basename(path).partition('.')[2]}")
        (path,) = glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.xplane.pb"))
        return read(path, compiled.as_text())


def read(path: str, text: str) -> dict[str, Any]:
    """What the device did: seconds in all, the idle share, copies to the host, and shares by kernel and named scope.

    Args:
      path: of an .xplane.pb file.
      text: the compiled program's; it says of which part of the code an instruction is.
    """
    name_of = dict(re.findall(r'%?([\w.\-]+) = [^\n]*op_name="([^"]*)"', text))
    planes = list(jax.profiler.ProfileData.from_file(path).planes)
    on_gpu = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    streams = [line for line in on_gpu if line.name.startswith("Stream")]
    lines = streams or on_gpu or [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    spans: list[tuple[float, float]] = []
    kernels: collections.Counter[str] = collections.Counter()
    scopes: collections.Counter[str] = collections.Counter()
    for event in (event for line in lines for event in line.events):
        operation = str(dict(event.stats).get("hlo_op", ""))
        # A CPU's threads tell much else, and loops beside what is in them.
        if not on_gpu and (not operation or event.name.startswith("end: ") or _CONTROL.match(operation)):
            continue
        spans.append((event.start_ns, event.start_ns + event.duration_ns))
        kernels[event.name] += event.duration_ns
        scopes[scope(name_of.get(operation, ""))] += event.duration_ns
    if not spans:
        return {}
    busy, total = covered(spans), max(end for _, end in spans) - min(start for start, _ in spans)
    share = lambda counted: {name: took / sum(counted.values()) for name, took in counted.most_common(12)}
    copies = sum("MemcpyD2H" in event.name for line in on_gpu for event in line.events)
    return {
        "seconds": total / 1e9, "idle": 1 - busy / total, "events": len(spans), "copies_to_host": copies,
        "kernels": share(kernels), "scopes": share(scopes),
    }  # fmt: skip


_CONTROL = re.compile("while|call|conditional")
# What JAX puts into an instruction's name beside `jax.named_scope`: names of its own, and wrappers of ours.
_ADDED = re.compile(r"while|body|cond|scan|closed_call|checkpoint|shard_map|branch_\w*|.*\W.*|")
_WRAPPER = re.compile(r"(?:jvp|transpose|vmap)\((.*)\)")


def scope(name: str) -> str:
    """The named scopes in an instruction's name: `propose/choose` of `jit(f)/while/body/propose/choose/add`."""
    parts = []
    for part in name.split("/")[:-1]:
        while wrapped := _WRAPPER.fullmatch(part):
            part = wrapped[1]
        if not _ADDED.fullmatch(part):
            parts.append(part)
    return "/".join(parts) or "(none)"


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals: what runs side by side counts once."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def show(title: str, found: dict[str, Any]) -> None:
    """Prints what `read` returns."""
    copies = f", {found['copies_to_host']} copies to the host" if found["copies_to_host"] else ""
    for what in ("kernels", "scopes"):
        rows = [{what: key, "share of time": value} for key, value in found[what].items()]
        print_table(f"{title}, {found['idle']:.0%} idle{copies}", rows)
