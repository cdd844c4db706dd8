"""Several processes on this machine, as if they were hosts: what tests use, and a machine with several GPUs can.

python -m experiments.launch.local --processes=2 --devices=4 --config=configs/debug.py --workdir=runs/two

All other options go to `alphallm.train`. Each process has its share of the devices: of a CPU, cut into `--devices`
virtual ones, or of the GPUs. The status is that of the first process that did not end well.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from alphallm.errors import UserError

GRACE_SECONDS = 90  # that the others have, when one is gone, to end with a sentence of their own.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="How many processes.")
    parser.add_argument("--devices", type=int, default=2, help="How many devices, all processes together.")
    parser.add_argument("--platform", choices=["cpu", "gpu"], default="cpu", help="What the devices are.")
    options, others = parser.parse_known_args()
    try:
        processes = launch(others, options.processes, options.devices, options.platform)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(wait(processes))


def launch(
    arguments: Sequence[str], processes: int, devices: int, platform: str = "cpu", **popen: Any
) -> list[subprocess.Popen]:
    """Starts `alphallm.train` in each process; UserError where the devices do not go round."""
    if processes < 1 or devices < processes or devices % processes:
        raise UserError(
            f"{processes} processes can not share {devices} devices evenly: give --devices a multiple of --processes."
        )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    each = devices // processes
    started = []
    for index in range(processes):
        environment = {**os.environ, **popen.get("env", {})}
        if platform == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(index * each, (index + 1) * each)))
        place = [f"--distributed=localhost:{port},{index},{processes}", f"--cpu_devices={each}"]
        command = [sys.executable, "-m", "alphallm.train", *place, *arguments]
        started.append(subprocess.Popen(command, **{**popen, "env": environment}))
    return started


def wait(processes: Sequence[subprocess.Popen]) -> int:
    """Waits for all; where one ends badly, those that do not follow it are ended. SIGTERM and SIGINT go to all."""

    def forward(number, frame):
        for process in processes:
            process.send_signal(signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, forward)
        signal.signal(signal.SIGINT, forward)
    deadline, status = None, 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.1)
        status = status or next((process.returncode for process in processes if process.returncode), 0)
        if status and deadline is None:
            gone = next(number for number, process in enumerate(processes) if process.returncode)
            print(f"Process {gone} ended with status {status}; the others have {GRACE_SECONDS} s.", file=sys.stderr)
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return status or next((process.returncode for process in processes if process.returncode), 0)


if __name__ == "__main__":
    main()
