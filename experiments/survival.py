"""Kills a small run again and again: `python -m experiments.survival [--kills=20] [--cpu_devices=1,2]`.

A run is trained once without interruption. Then the same run is killed with SIGKILL at random moments (while it starts
and compiles, while it trains, while it saves), and started again each time until it ends. It survives if

*   every restart continues exactly from the newest checkpoint that was complete when it was killed,
*   everything in the last checkpoint (parameters, their average, optimizer, replay) equals the unbroken run's, bit for
    bit, and so do the weights that it exported,
*   and so does every logged metric of every tick, logged once.

With --processes=2 the run is one of several processes, as on several hosts, and each kill is of one of them: the others
must end within `experiments.launch.local.GRACE_SECONDS`, and the restart of all must continue.

A second table shows what a user is told where a run can not go on, that the exit status says so, and that the
checkpoints before are as they were. The kills share one cache of compiled programs, empty at first, so that some fall
into compiling and into writing that cache.
"""

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from alphallm.config import run_main
from experiments.launch.local import GRACE_SECONDS

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "configs/debug.py"
TINY = {
    "model.num_layers": 1, "model.width": 32, "model.hidden_dim": 64, "model.head_dim": 16,
    "search.num_simulations": 4, "search.num_candidates": 4, "search.max_considered": 4,
    "warm_start.num_steps": 40, "warm_start.batch_size": 4,
    "training.problems_per_iteration": 4, "training.learner_steps": 2, "training.trees_per_step": 4,
    "training.replay_capacity": 4, "targets.candidates_per_node": 4, "targets.nodes_per_tree": 4,
    "training.reanalyse_fraction": 0.25, "evaluation.num_simulations": 4,
}  # fmt: skip
KINDS = ("start", "train", "save")


def define_flags() -> None:
    flags.DEFINE_integer("kills", 20, "How often the run is killed; 0 only shows what is said.")
    flags.DEFINE_integer("ticks", 0, "The run's length; by default three ticks for each kill.")
    flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
    flags.DEFINE_list("cpu_devices", ["1", "2"], "On how many virtual devices; the whole is done once for each.")
    flags.DEFINE_integer("processes", 1, "How many processes share the devices, as hosts do; one of them is killed.")
    flags.DEFINE_bool("failures", True, "Also show what is said where a run can not go on.")
    flags.DEFINE_string("output", "", "A folder for the runs; by default one that is deleted in the end.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    from alphallm.display import print_table

    options = flags.FLAGS
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(options.output or temporary)
        faults: list[str] = []
        for devices in map(int, options.cpu_devices if options.kills else []):
            ticks = options.ticks or max(12, 3 * options.kills)
            folder = root / f"devices_{devices}"
            kills, found = survive(folder, options.kills, ticks, devices, options.seed, processes=options.processes)
            print_table(f"{devices} devices", [dataclasses.asdict(kill) for kill in kills])
            print(f"{devices} devices: {'; '.join(found) or 'equal to the unbroken run, bit for bit'}", flush=True)
            faults += found
            if len(kills) < options.kills:
                faults.append(f"only {len(kills)} of {options.kills} kills on {devices} devices: it outran the rest")
        if options.failures:
            rows = failures(root / "failures")
            print_table("What is said", rows)
            faults += [row["case"] for row in rows if row["verdict"] != "right"]
    if faults:
        sys.exit(1)


@dataclasses.dataclass(frozen=True)
class Kill:
    kind: str
    seconds: float  # after the start of the process.
    logged: int  # the last tick in its metrics.
    checkpoint: int  # the newest complete one at that moment, 0 if there is none.
    continued: int  # the checkpoint that the next process continued from.
    victim: int = 0  # which process.
    ended_after: float = 0.0  # seconds until all others had ended.


def survive(
    root: pathlib.Path,
    number: int,
    ticks: int,
    devices: int,
    seed: int,
    cache: pathlib.Path | None = None,
    program: Sequence[str] = ("-m", "alphallm.train"),
    processes: int = 1,
) -> tuple[list[Kill], list[str]]:
    """Kills a run `number` times: the kills, and what was wrong (nothing, if all is well).

    `cache` keeps compiled programs; without it two new ones are used, so that the killed run has to compile. `program`
    is what Python is told to run. Of several `processes` one is killed each time.
    """
    if processes > 1:
        program = ("-m", "experiments.launch.local", f"--processes={processes}", f"--devices={devices}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    unbroken, killed = root / "unbroken", root / "killed"
    arguments = train_arguments(ticks)
    began = time.monotonic()
    start(arguments, unbroken, devices, cache or root / "cache_unbroken", program).communicate()
    whole = time.monotonic() - began
    if not (unbroken / "export").is_dir():
        return [], ["the unbroken run failed"]
    generator = random.Random(seed)
    # Every kind of moment a third of the time, in random order; the first kill falls into the first compilation.
    kinds = ["start", *(KINDS[i % 3] for i in range(1, number))]
    kinds[1:] = generator.sample(kinds[1:], number - 1)
    kills, faults = [], []
    for i, kind in enumerate(kinds):
        process = start(arguments, killed, devices, cache or root / "cache_killed", program)
        began = time.monotonic()
        # Where all is compiled already, four seconds end within the imports: at least one kill comes before the end.
        startup = min(whole, 4.0 if cache else whole if i == 0 else 8.0)
        wait_for_moment(process, killed, kind, (i + 1) * ticks // (number + 1), startup, generator)
        victim = generator.randrange(processes)
        if process.poll() is None:
            os.kill(process.pid if processes == 1 else children(process.pid)[victim], signal.SIGKILL)
        at = time.monotonic()
        told = process.communicate()[0]
        if process.returncode == 0:  # It was faster than its kill.
            break
        if process.returncode != -signal.SIGKILL and processes == 1:
            faults.append(f"process {i} ended by itself with status {process.returncode}: {told[-300:]}")
            break
        waited = time.monotonic() - at
        if waited > GRACE_SECONDS:
            faults.append(f"the others hung for {waited:.0f} s after kill {i}")
        seconds = round(at - began, 2)
        seen = last_logged(killed), newest_checkpoint(killed)
        kills.append(Kill(kind, seconds, *seen, -1, victim, round(waited, 1)))
        note_continuation(kills, first_tick(told), i, faults)
    process = start(arguments, killed, devices, cache or root / "cache_killed", program)
    told = process.communicate()[0]
    if process.returncode:
        faults.append(f"the last process ended with status {process.returncode}: {told[-300:]}")
    else:
        note_continuation(kills, first_tick(told), len(kills), faults)
        faults += differences(unbroken, killed)
    return kills, faults


def train_arguments(ticks: int, **changes: Any) -> list[str]:
    values = {
        **TINY, "training.num_iterations": ticks - 2, "checkpoints.every": 2, "checkpoints.keep": 2,
        "evaluation.every": max(1, ticks // 3), **changes,
    }  # fmt: skip
    return [f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in values.items())]


def start(
    arguments: Sequence[str],
    workdir: pathlib.Path,
    devices: int,
    cache: pathlib.Path,
    program: Sequence[str] = ("-m", "alphallm.train"),
) -> subprocess.Popen:
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": without_device_count(os.environ.get("XLA_FLAGS", "")),
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }  # fmt: skip
    command = [sys.executable, *program, f"--workdir={workdir}", *arguments]
    if "experiments.launch.local" not in program:
        command.append(f"--cpu_devices={devices}")
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def without_device_count(flags_of_xla: str) -> str:
    return re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags_of_xla)


def wait_for_moment(process, workdir: pathlib.Path, kind: str, tick: int, startup: float, generator: random.Random):
    """Returns at a random moment of the kind: while starting up, after some tick, or in a save after it."""
    if kind == "start":
        return wait(process, generator.uniform(0, startup))
    while process.poll() is None and last_logged(workdir) < max(tick, newest_checkpoint(workdir) + 1):
        time.sleep(0.005)
    if kind == "train":
        return wait(process, generator.uniform(0, 0.2))
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not saving(workdir):
        time.sleep(0.0005)
    return wait(process, generator.uniform(0, 0.03))


def wait(process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def children(parent: int) -> list[int]:
    """The processes that a process started, in their order; waits for them to be there."""
    path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + 10
    while not path.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return [int(number) for number in path.read_text().split()]


def saving(workdir: pathlib.Path) -> bool:
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def newest_checkpoint(workdir: pathlib.Path) -> int:
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def last_logged(workdir: pathlib.Path) -> int:
    return max((row["step"] for row in logged(workdir)), default=0)


def logged(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path, rows = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # it is being written.
            break
    return rows


def first_tick(told: str) -> int | None:
    """The first tick that a process made; None if it made none."""
    found = re.search(r"tick (\d+)/", told)
    return int(found.group(1)) if found else None


def note_continuation(kills: list[Kill], first: int | None, process: int, faults: list[str]) -> None:
    """Checks that this process began right after the checkpoint that the kill before it left."""
    if first is None or process == 0 or process > len(kills):
        return
    kills[process - 1] = dataclasses.replace(kills[process - 1], continued=first - 1)
    expected = kills[process - 1].checkpoint
    if first - 1 != expected:
        faults.append(f"process {process} continued from {first - 1}, and the newest checkpoint was {expected}")


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """How two finished runs of one config differ."""
    import jax
    import numpy as np

    from alphallm.config import from_dict
    from alphallm.training.checkpoints import Checkpoints
    from alphallm.training.config import Config
    from alphallm.training.loop import Trainer

    config = from_dict(Config, json.loads((one / "config.json").read_text()))
    template = Trainer(config).initial_state()
    states = [Checkpoints(run / "checkpoints").restore(template)[0] for run in (one, other)]
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, states), strict=True)
    found = [
        f"{jax.tree_util.keystr(path)} differs"
        for (path, x), (_, y) in leaves
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
    for name in ("export", "warm_start"):
        if (one / name / "weights.safetensors").read_bytes() != (other / name / "weights.safetensors").read_bytes():
            found.append(f"the weights in {name} differ")
    if logged(one) != logged(other):
        found.append("metrics.jsonl differs")
    if (one / "samples.txt").read_bytes() != (other / "samples.txt").read_bytes():
        found.append("samples.txt differs")
    return found


def failures(root: pathlib.Path) -> list[dict[str, Any]]:
    """Provokes what a user may meet; each row has the sentence that was said, and whether all was as it should be."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    cache, base = root / "cache", root / "base"
    plain = train_arguments(6)
    start(plain, base, 1, cache).communicate()

    def attempt(case: str, words: str, arguments=plain, prepare=lambda run: None, fails=True, copies=True):
        run = root / re.sub(r"\W+", "_", case)
        if copies:
            shutil.copytree(base, run)
        prepare(run)
        before = checkpoint_bytes(run)
        process = start(arguments, run, 1, cache)
        told = process.communicate()[0]
        lines = [line for line in told.splitlines() if line.startswith(("error:", "warning:"))]
        kept = all(checkpoint_bytes(run).get(path) == data for path, data in before.items())
        right = (process.returncode == int(fails)) and words in told and "Traceback" not in told and len(lines) == 1
        right = right and (kept or not fails)
        return {"case": case, "verdict": "right" if right else f"wrong (status {process.returncode})", "said": lines}

    def truncate(run: pathlib.Path):
        largest = max((run / "checkpoints" / "6").rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:1000])

    def truncate_all(run: pathlib.Path):
        for step in ("4", "6"):
            largest = max((run / "checkpoints" / step).rglob("*"), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:1000])

    longer = train_arguments(9)
    rows = [
        attempt("workdir of another config", "seed: 0 -> 1", [*plain, "--config.seed=1"]),
        attempt("not a number", "at tick", train_arguments(9, **{"optimizer.learning_rate": 1e30}), copies=False),
        attempt("init_from of another shape", "init_from",
                [*plain, f"--config.init_from={base}", "--config.model.width=64"], copies=False),
        attempt("truncated checkpoint", "is passed over", longer, truncate, fails=False),
        attempt("all checkpoints truncated", "Every checkpoint", longer, truncate_all),
        attempt("foreign folder of checkpoints", "no checkpoints of AlphaLLM", longer,
                lambda run: (run / "checkpoints" / "ALPHALLM_CHECKPOINTS").unlink()),
        attempt("unsolvable puzzle", "24", [*plain, "--config.training.overfit=1 1 1 1"], copies=False),
        attempt("malformed puzzle", "ten", [*plain, "--config.training.overfit=4 9 ten 1"], copies=False),
    ]  # fmt: skip
    fresh = train_arguments(40, **{"checkpoints.keep": 40})
    return [
        *rows,
        full_disk("disk full at a checkpoint", "could not be saved|Nothing more can be written", root / "small", cache,
                  fresh, "true"),
        full_disk("disk full at once", "Nothing more can be written", root / "full", cache, longer,
                  f"cp -r {base} {root}/full/run && cat /dev/zero > {root}/full/filler 2> /dev/null; true"),
    ]  # fmt: skip


def full_disk(
    case: str, words: str, folder: pathlib.Path, cache: pathlib.Path, arguments: Sequence[str], prepare: str
) -> dict[str, Any]:
    """Trains on a file system of 1.5 MB, in a mount namespace of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "alphallm.train", f"--workdir={folder}/run", "--cpu_devices=1", *arguments]
    mount = f"mount -t tmpfs -o size=1500k tmpfs {folder} && {{ {prepare}; }}"
    inner = f'{mount} && "$@"; status=$?; echo steps: $(ls {folder}/run/checkpoints); exit $status'
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, "sh", *command],
        cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_COMPILATION_CACHE_DIR": str(cache)},
    )  # fmt: skip
    if "mount" in process.stderr or "unshare" in process.stderr:
        return {"case": case, "verdict": "right", "said": ["(not tried: no right to mount a small disk)"]}
    lines = [line for line in process.stderr.splitlines() if line.startswith(("error:", "warning:"))]
    kept = [name for name in process.stdout.rpartition("steps:")[2].split() if name.isdecimal() and int(name) > 0]
    right = (
        process.returncode == 1 and len(lines) == 1 and re.search(words, lines[0]) and "Traceback" not in process.stderr
    )
    verdict = "right" if right and kept else f"wrong (status {process.returncode}, kept {kept}): {process.stderr}"
    return {"case": case, "verdict": verdict, "said": lines}


def checkpoint_bytes(run: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}


if __name__ == "__main__":
    define_flags()
    run_main(main)
