"""Several processes: what they do together, and what is said where they can not."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.training import hosts, parallel
from alphallm.training.config import Config
from experiments import layouts, survival
from experiments.launch.local import launch

CACHE = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
FULL = bool(os.environ.get("ALPHALLM_FULL"))


@pytest.mark.skipif(not FULL, reason="minutes of compilation: ALPHALLM_FULL=1; test_actor.py has less of it")
def test_runs_on_other_layouts_agree(tmp_path):
    """Also over two processes, and a run that changes its layout twice."""
    rows = layouts.compare(tmp_path, list(layouts.LAYOUTS), CACHE)
    assert [row["verdict"] for row in rows] == ["right"] * len(rows), rows


def test_one_of_two_processes_is_killed_and_the_run_goes_on(tmp_path):
    """More kills: python -m experiments.survival --processes=2 --cpu_devices=2 --kills=10."""
    kills, faults = survival.survive(tmp_path, number=1, ticks=6, devices=2, seed=0, cache=CACHE, processes=2)
    assert not faults and len(kills) == 1


HANGS = """
import os, signal, sys
from alphallm.training import hosts
hosts.SILENT_SECONDS = 4
hosts.start(sys.argv[1])
hosts.total(hosts.np.ones(1))
if hosts.jax.process_index() == int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGSTOP)
hosts.total(hosts.np.ones(1))
"""


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_process_that_hangs_ends_the_others(hanging):
    port = free_port()
    command = [sys.executable, "-c", HANGS]
    processes = [
        subprocess.Popen([*command, f"localhost:{port},{index},2", str(hanging)], stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    told = processes[1 - hanging].communicate(timeout=60)[1]
    assert processes[hanging].poll() is None
    processes[hanging].kill()
    processes[hanging].communicate()
    assert processes[1 - hanging].returncode == hosts.HostLost.status == 76, told
    assert f"has lost another one (process {hanging} says nothing for 4 s)" in told and "Traceback" not in told


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(arguments, workdir, **changes):
    """One process of a small run."""
    return survival.start([*survival.train_arguments(8, **changes), *arguments], workdir, 1, CACHE)


def test_sigterm_saves_and_the_run_continues(tmp_path):
    process = start([], tmp_path / "run", **{"checkpoints.every": 100})
    while survival.last_logged(tmp_path / "run") < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[0]
    saved = survival.newest_checkpoint(tmp_path / "run")
    assert process.returncode == hosts.Preempted.status == 75, told
    assert saved >= 3 and f"Stopped after tick {saved} of 8" in told and "Traceback" not in told
    told = start([], tmp_path / "run", **{"checkpoints.every": 100}).communicate()[0]
    assert survival.first_tick(told) == saved + 1
    assert [row["step"] for row in survival.logged(tmp_path / "run") if "loss/policy" in row] == [*range(1, 9)]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("localhost", "give auto, or HOST:PORT,ID,COUNT"),
        ("localhost:1,2,2", "of 2 processes the IDs are 0 to 1"),
    ],
)
def test_what_can_not_be_joined_is_said(how, words):
    with pytest.raises(UserError, match=words):
        hosts.start(how)


ALONE = "import sys; from alphallm.training import hosts; hosts.CONNECT_SECONDS = 2; hosts.start(sys.argv[1])"


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_stays_alone_is_told_so(index):
    how = f"localhost:{free_port()},{index},2"
    process = subprocess.run([sys.executable, "-c", ALONE, how], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    said = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and f"--distributed={how} did not come together within 2 s" in said[0], process.stderr


LEAVES = """
import atexit, sys, threading
from alphallm.training import hosts
# Registered first, it runs last: a thread of ours in the coordinator's C++ from here on would abort the process.
atexit.register(lambda: print([each.name for each in threading.enumerate()]))
hosts.start(sys.argv[1])
hosts.total(hosts.np.ones(1))
"""


def test_processes_leave_in_peace():
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES, f"localhost:{port},{index},2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert all("MainThread" in out and "exchange" not in out and "watch" not in out for out, _ in told), told


def test_a_machine_without_a_cluster_is_told_so(tmp_path):
    process = start(["--distributed=auto"], tmp_path / "run")
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "finds no SLURM, Open MPI, GKE or Cloud TPU job" in told, told


def test_processes_that_do_not_run_the_same_are_told_so_on_each(tmp_path):
    """Two processes with different configs."""
    arguments = survival.train_arguments(8)
    options = {
        "cwd": survival.REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
        "env": {"PYTHONPATH": str(survival.REPOSITORY), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    }  # fmt: skip
    one, other = launch([*arguments, f"--workdir={tmp_path}/run"], 2, 2, **options)
    other.kill()
    other.communicate()
    place = next(word for word in one.args if word.startswith("--distributed"))
    joined = [*one.args[:3], place.replace(",0,2", ",1,2"), *one.args[4:], "--config.seed=1"]
    other = subprocess.Popen(joined, **{**options, "env": {**os.environ, **options["env"]}})
    told = [process.communicate(timeout=120)[0] for process in (one, other)]
    assert [one.returncode, other.returncode] == [1, 1], told
    for text in told:
        assert "Process 1 has another config than process 0" in text and "Traceback" not in text


def test_more_processes_than_devices_are_refused():
    with pytest.raises(UserError, match="4 processes can not share 2 devices evenly"):
        launch([], 4, 2)


def test_hosts_take_disjoint_parts_of_a_batch(monkeypatch):
    """Each host's shard, put together in the order of hosts, is the batch."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(parallel, "_place", lambda x: x)
    parts = []
    for host in range(3):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts.append(parallel.shard(np.arange(12)).reshape(-1))
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(12))


def test_an_error_of_the_first_host_is_raised(monkeypatch):
    def fails():
        raise UserError("no")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", lambda x: x)
    with pytest.raises(UserError, match="^no$"):
        hosts.on_main(fails)
    assert hosts.on_main(lambda: 3) == 3


def test_what_differs_between_hosts_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gather(digests):
        other = digests.copy()
        other[:, 1] += 1
        return np.concatenate([digests, other])

    monkeypatch.setattr(hosts, "gather", gather)
    with pytest.raises(UserError, match="Process 1 has another code than process 0"):
        hosts.check_same_program(Config())


def test_launch_scripts_are_valid_shell():
    for script in ("slurm.sh", "tpu_vm.sh"):
        path = survival.REPOSITORY / "experiments" / "launch" / script
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    told = subprocess.run([str(path)], capture_output=True, text=True, check=False)
    assert told.returncode == 2 and "usage" in told.stderr
