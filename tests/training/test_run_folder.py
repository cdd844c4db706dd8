"""A run's folder: what is logged, what is cut back on resume, and which folders are refused."""

import dataclasses
import errno
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.config import to_dict
from alphallm.errors import UserError
from alphallm.training import run_folder
from alphallm.training.run_folder import RunLog, check_same_config, read_config, read_rows, write_config


@dataclasses.dataclass(frozen=True)
class Search:
    num_simulations: int = 32
    policy: str = "gumbel"


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    stepsize: float = 0.1
    search: Search = Search()


def event_steps(folder) -> list[tuple[int, bool]]:
    """(step, whether it starts a session) of every event, files in the order they were written."""
    from tensorboardX.proto.event_pb2 import Event

    steps = []
    for path in sorted(folder.glob("events.*"), key=os.path.getmtime):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("summary") or event.HasField("session_log"):
                steps.append((event.step, event.HasField("session_log")))
    return steps


@pytest.mark.smallest
def test_metrics_are_rows_and_events(tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.metrics(1, {"loss": np.float32(0.5), "count": 3, "rate": jnp.float32(0.25), "bad": float("nan")})
        assert read_rows(tmp_path / "run" / "metrics.jsonl") == [
            {"step": 1, "loss": 0.5, "count": 3, "rate": 0.25, "bad": None}
        ]
        log.metrics(2, {"loss": 0.25})
    assert event_steps(tmp_path / "run") == [(1, False)] * 3 + [(2, False)]


def test_a_full_disk_is_told_once(tmp_path, monkeypatch, capfd):
    """The event file is on a device that is always full, and then the metrics are too."""
    log = RunLog(tmp_path)
    event_file = run_folder._EventFile
    monkeypatch.setattr(run_folder, "_EventFile", lambda path: event_file("alphallm:/dev/full"))
    log.metrics(1, {"loss": 1.0})
    os.remove(tmp_path / "metrics.jsonl")
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="No space left"):
        log.metrics(2, {"loss": 1.0})
    log.close()
    assert capfd.readouterr().err == ""


def test_a_resumed_run_cuts_back_its_logs(tmp_path):
    with RunLog(tmp_path) as log:
        log.cut_back(0)  # nothing is there yet
        for step in (1, 2, 3):
            log.metrics(step, {"loss": step})
            log.sample(step, "solved", f"4 + {step}", value=0.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with RunLog(tmp_path) as log:
        log.cut_back(2)
        assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
        log.metrics(3, {"loss": 9})
        log.sample(3, "failed", "4 - 3")
    assert read_rows(tmp_path / "metrics.jsonl")[-1] == {"step": 3, "loss": 9}
    assert [row["text"] for row in read_rows(tmp_path / "samples.jsonl")] == ["4 + 1", "4 + 2", "4 - 3"]
    assert (tmp_path / "samples.txt").read_text() == (
        "step 1 · solved\n4 + 1\n\nstep 2 · solved\n4 + 2\n\nstep 3 · failed\n4 - 3\n\n"
    )
    assert (3, True) in event_steps(tmp_path), "TensorBoard must be told that step 3 begins anew"


def test_a_damaged_row_within_a_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="Line 2 of .* is damaged"):
        RunLog(tmp_path).cut_back(3)


def test_a_config_with_differences_is_refused(tmp_path):
    folder = tmp_path / "run"
    assert read_config(folder) is None and check_same_config(folder, Config()) == []
    write_config(folder, to_dict(Config()))
    assert check_same_config(folder, Config()) == []
    assert check_same_config(folder, to_dict(Config(steps=20)), free=("steps",)) == ["steps: 10 -> 20"]
    other = Config(steps=20, stepsize=0.2, search=Search(64, "puct"))
    with pytest.raises(UserError) as caught:
        check_same_config(folder, other, free=("steps", "search.policy"))
    assert "(stepsize: 0.1 -> 0.2; search.num_simulations: 32 -> 64)" in str(caught.value)
    assert check_same_config(folder, Config(search=Search(64, "puct")), free=("search",)) == [
        "search.num_simulations: 32 -> 64",
        "search.policy: gumbel -> puct",
    ]


def test_a_field_that_is_younger_than_the_run_counts_with_its_default(tmp_path):
    older = to_dict(Config())
    del older["stepsize"], older["search"]["policy"]
    write_config(tmp_path, older)
    assert check_same_config(tmp_path, Config()) == []
    with pytest.raises(UserError, match=r"\(stepsize: 0.1 -> 0.2\)"):
        check_same_config(tmp_path, Config(stepsize=0.2))
    write_config(tmp_path, older | {"gone": 1})
    with pytest.raises(UserError, match=r"gone: 1 -> \(absent\)"):
        check_same_config(tmp_path, Config())


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    assert read_config(tmp_path) is None
    (tmp_path / "notes.txt").write_text("mine")
    for folder, words in [(tmp_path, "holds 'notes.txt' but no config.json"), (tmp_path / "notes.txt", "not a folder")]:
        with pytest.raises(UserError, match=words):
            check_same_config(folder, Config())
    for text, words in [("{", "is damaged"), ("[]", "is not a config")]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            check_same_config(tmp_path, Config())


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    log.metrics(1, {"loss": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    for call in (
        lambda: log.metrics(2, {"loss": 1}),
        lambda: log.sample(2, "solved", "4"),
        lambda: write_config(tmp_path, {}),
    ):
        with pytest.raises(UserError, match="No space left on device"):
            call()
    monkeypatch.undo()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1}]
