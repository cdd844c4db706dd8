"""Several hosts: the same program on each, started together, every one with devices of its own.

The hosts meet in the collectives of the compiled functions, and here, in a few small messages: at the start they
compare what they are about to run, and after each tick they agree on whether to stop. The first host writes the run's
folder; the others read checkpoints from it, so that it must be on a disk that all of them see.
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its client passes on small messages; there is no public way to it.
from jax.experimental import multihost_utils

from alphallm.config import to_dict
from alphallm.errors import UserError

_T = TypeVar("_T")

CONNECT_SECONDS = 50  # for all processes to come together.
SILENT_SECONDS = 20  # after so long without a sign of life a process counts as lost.
_HEARTBEAT_SECONDS = 40  # the same for JAX, which then ends the process with a C++ stack trace.
_LEAVE_SECONDS = 5  # for the last word to the others, who may be gone.
_GOODBYE = "leaves"  # it is not missed any more.
_LONGEST_SENTENCE = 2000  # bytes of an error that the first host tells the others.


class Preempted(UserError):
    """The run was asked to stop, and has saved its state."""

    status = 75  # EX_TEMPFAIL of sysexits.h: run the same command again.


class HostLost(UserError):
    """Another process of the run no longer answers."""

    status = 76


def start(how: str):
    """Joins the other processes. `how` is "" (there are none), "auto" (SLURM, Open MPI, GKE and Cloud TPU say in the
    environment who they are), or HOST:PORT,ID,COUNT: where process 0 listens, which one this is, and of how many.

    Call it before JAX is first used. Raises UserError where that fails. Where the others do not come within
    `CONNECT_SECONDS` it ends the process with a sentence.
    """
    if not how:
        return
    address, index, count = (None, None, None) if how == "auto" else _parse(how)
    apart = (
        f"The processes of --distributed={how} did not come together within {CONNECT_SECONDS} s: start all of them, "
        "each with another ID, and with the address of the first one."
    )
    # JAX waits longer, and would end the process with a C++ stack trace.
    late = threading.Timer(CONNECT_SECONDS, _end, [UserError(apart)])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address, count, index,
            initialization_timeout=2 * CONNECT_SECONDS, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if how == "auto" and isinstance(error, ValueError):
            raise UserError(
                f"--distributed=auto finds no SLURM, Open MPI, GKE or Cloud TPU job in the environment ({reason}): "
                "give --distributed=HOST:PORT,ID,COUNT."
            ) from error
        raise UserError(f"--distributed={how} failed ({reason}).") from error
    finally:
        late.cancel()
    _watch_others()


def _end(error: UserError):
    """Ends the process from any thread, as what JAX waits for in C++ can not be interrupted."""
    print(f"\nerror: {error}", file=sys.stderr, flush=True)
    os._exit(error.status)


def _parse(how: str) -> tuple[str, int, int]:
    address, _, rest = how.partition(",")
    numbers = rest.split(",")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(f"--distributed={how!r}: give auto, or HOST:PORT,ID,COUNT as in localhost:9911,0,2.")
    index, count = map(int, numbers)
    if not index < count:
        raise UserError(f"--distributed={how!r}: of {count} processes the IDs are 0 to {count - 1}.")
    return address, index, count


def _watch_others():
    """Starts to exchange signs of life. Where another process gives none, as one that hangs, this one ends with a
    sentence: what waits in a collective can not be told in any other way.

    (A process that is gone closes its connections, and then a collective fails: see `others_alive`.)
    """
    job = distributed.global_state
    client: Any = job.client
    mine = f"alive/{job.process_id}"
    said: dict[str, str] = {}
    # Seconds that this process has waited; not those of the clock, which go on while it is stopped itself.
    silent = dict.fromkeys((f"alive/{index}" for index in range(job.num_processes)), 0)
    leaves = threading.Event()

    def exchange():
        for beat in itertools.count():
            word = _GOODBYE if leaves.is_set() else str(beat)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Process 0 may not answer.
                client.key_value_set(mine, word, allow_overwrite=True)
                for who, its_word in client.key_value_dir_get("alive/"):
                    if said.get(who) != its_word or its_word == _GOODBYE:
                        said[who], silent[who] = its_word, 0
            if word == _GOODBYE:
                return
            leaves.wait(1.0)

    def watch():
        while not leaves.wait(1.0):
            for who in silent:
                silent[who] += 1
            if silent[mine] > SILENT_SECONDS:
                _end(_silent("0"))  # it passes the signs on: not even this process's own comes back.
            who = max(silent, key=lambda each: silent[each])
            if silent[who] > SILENT_SECONDS and silent[mine] < 3:
                _end(_silent(who.removeprefix("alive/")))

    threads = [threading.Thread(target=function, daemon=True) for function in (exchange, watch)]

    def leave():
        # A thread that is within the coordinator's C++ when the interpreter is taken down aborts the process.
        leaves.set()
        for thread in threads:
            thread.join(_LEAVE_SECONDS)

    for thread in threads:
        thread.start()
    atexit.register(leave)  # Runs before JAX's own, which waits for the other processes to leave too.


def _silent(process: str) -> HostLost:
    return _lost(f"process {process} says nothing for {SILENT_SECONDS} s")


def _lost(reason: str) -> HostLost:
    job = distributed.global_state
    return HostLost(
        f"Process {job.process_id} of {job.num_processes} has lost another one ({reason}). Start the same "
        "command on all hosts again: the run continues from its last checkpoint."
    )


def is_main() -> bool:
    """Whether this is the host that writes."""
    return jax.process_index() == 0


def on_main(function: Callable[[], _T]) -> _T | None:
    """What `function` returns on the first host; None on the others. Its UserError is raised on all of them."""
    if jax.process_count() == 1:
        return function()
    result, told = None, np.zeros(_LONGEST_SENTENCE, np.uint8)
    if is_main():
        try:
            result = function()
        except UserError as error:
            sentence = str(error).encode()[:_LONGEST_SENTENCE]
            told[: len(sentence)] = np.frombuffer(sentence, np.uint8)
    told = multihost_utils.broadcast_one_to_all(told)
    if told.any():
        raise UserError(bytes(told).rstrip(b"\0").decode(errors="ignore"))
    return result


def number_of_main(number: int) -> int:
    """The first host's number, on all hosts."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def gather(array: np.ndarray) -> np.ndarray:
    """The hosts' arrays, which have one shape, one after the other along the first axis; the same on all hosts."""
    if jax.process_count() == 1:
        return array
    return np.concatenate(list(multihost_utils.process_allgather(array)))


def total(array: np.ndarray) -> np.ndarray:
    """The sum of the hosts' arrays, on all hosts."""
    return np.sum(gather(np.asarray(array)[None]), 0)


def check_same_program(config: Any):
    """Raises UserError, on every host, where hosts are about to run different programs."""
    check_same(
        {
            "config": json.dumps(to_dict(config), sort_keys=True).encode(),
            "code": b"".join(path.read_bytes() for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))),
            "version of jax": jax.__version__.encode(),
            "number of local devices": str(jax.local_device_count()).encode(),
        }
    )


def check_same_problems(problems: Any):
    """The same for their problems, in tokens."""
    check_same({"problems or tokenizer": b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(problems))})


def check_same(compared: dict[str, bytes]):
    """Raises UserError, on every host, where something differs between them; the keys say what it is."""
    if jax.process_count() == 1:
        return
    digests = np.stack([np.frombuffer(hashlib.sha256(each).digest(), np.uint8) for each in compared.values()])
    all_digests = gather(digests[None])
    for what, digest in zip(compared, np.moveaxis(all_digests, 1, 0), strict=True):
        different = [str(host) for host in range(len(digest)) if (digest[host] != digest[0]).any()]
        if different:
            raise UserError(
                f"Process {', '.join(different)} has another {what} than process 0: start all processes with the same "
                "code, command and data."
            )


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """While it is open, SIGTERM and SIGINT do not end the process but are noted; a second one ends it.

    Gives a function that says whether any host was asked, the same on all hosts when they call it at the same tick.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def note(number: int, frame: Any):
        asked.set()
        print("Stopping after this tick; once more stops at once.", file=sys.stderr, flush=True)
        restore()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None is JAX's own, in C++.

    if threading.current_thread() is threading.main_thread():  # Others can not set handlers.
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(total(np.array(asked.is_set(), np.int32)))
    finally:
        restore()


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """Says in a sentence what a collective reports in C++ when another host is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise _lost(" ".join(str(error).split())[:200]) from error
