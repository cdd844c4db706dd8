"""Checkpoints: what is saved comes back, and whatever can be wrong on a disk ends in a sentence."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alphallm.errors import UserError
from alphallm.training.checkpoints import Checkpoints

REPOSITORY = str(pathlib.Path(__file__).parents[2])


def make_state(value: float = 1.0, width: int = 4) -> dict:
    params = {"layers": {"w": jnp.full((2, width), value, jnp.float32), "b": jnp.full((3,), value, jnp.bfloat16)}}
    return {
        "params": params,
        "optimizer": optax.adam(1e-3).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 5),
        "step": np.int64(2**40),
        "replay": (np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 3), np.uint8), np.array([True, False])),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def save_steps(folder, steps, keep=3):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step})


@pytest.mark.smallest
def test_a_state_comes_back_equal(tmp_path):
    state, meta = make_state(), {"config": {"a": [1, 2.5, None, True]}, "position": 12}
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(5, state, meta)
        checkpoints.wait()
        assert checkpoints.latest() == 5
    for template in (state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)):
        found, found_meta = Checkpoints(tmp_path / "c").restore(template)
        assert_same(found, state)
        assert found_meta == meta
    part, _ = Checkpoints(tmp_path / "c").restore({"params": state["params"]}, partial=True)
    assert_same(part, {"params": state["params"]})


def test_the_newest_are_kept_and_any_of_them_can_be_read(tmp_path):
    save_steps(tmp_path, range(1, 6), keep=2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [4, 5]
    assert_same(checkpoints.restore(make_state())[0], make_state(5))
    assert_same(checkpoints.restore(make_state(), step=4)[0], make_state(4))
    with pytest.raises(UserError, match=r"no checkpoint of step 1 .*\[4, 5\]"):
        checkpoints.restore(make_state(), step=1)
    for step in (4, 5):
        with pytest.raises(UserError, match=f"Step {step} can not be saved"), checkpoints:
            checkpoints.save(step, make_state(), {})


def test_the_state_may_change_once_save_has_returned(tmp_path):
    state = {"replay": np.zeros((2000, 1000), np.float32), "donated": jnp.zeros((1000, 1000))}
    template = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in state.items()}
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        state["replay"] += 1
        state["donated"] = add(state["donated"])
    found, _ = Checkpoints(tmp_path).restore(template)
    assert not found["replay"].any() and not found["donated"].any()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda s: s["params"]["layers"].update(w=np.zeros((2, 5), np.float32)),
            r"layers/w' is float32 of shape \(2, 4",
        ),
        (lambda s: s["params"]["layers"].update(b=np.zeros((3,), np.float32)), "layers/b' is bfloat16"),
        (lambda s: s.update(extra=np.zeros(1)), "has no 'extra'"),
        (lambda s: s.pop("step"), "has 'step', which"),
        (lambda s: s.update(key=jax.random.key(1, impl="rbg")), r"'key' is uint32 of shape \(2,\)"),
    ],
)
def test_another_shape_or_name_is_refused_and_named(tmp_path, change, words):
    save_steps(tmp_path, [1])
    template = jax.tree.map(lambda x: x, make_state())
    change(template)
    with pytest.raises(UserError, match=words):
        Checkpoints(tmp_path).restore(template)


def files_of(folder) -> list[str]:
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in sorted(names)]


def damages(path):
    """Each way to damage a file, done and taken back."""
    content = pathlib.Path(path).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"1"
    for damaged in (b"", content[:middle], flipped, None):
        os.remove(path) if damaged is None else pathlib.Path(path).write_bytes(damaged)
        yield
        pathlib.Path(path).write_bytes(content)


def test_a_damaged_newest_checkpoint_is_never_read_as_if_it_were_whole(tmp_path, capsys):
    save_steps(tmp_path, [1, 2])
    passed_over = 0
    for path in files_of(tmp_path / "2"):
        for _ in damages(path):
            checkpoints = Checkpoints(tmp_path)
            found, meta = checkpoints.restore(make_state())
            assert meta["step"] == (1 if checkpoints.latest() == 1 else 2)
            assert_same(found, make_state(meta["step"]))
            if meta["step"] == 1:
                passed_over += 1
                assert "2' is damaged and is passed over" in capsys.readouterr().err
    assert passed_over >= 6
    assert Checkpoints(tmp_path).restore(make_state())[1] == {"step": 2}


def test_training_goes_on_after_a_damaged_checkpoint(tmp_path, capsys):
    save_steps(tmp_path, [1, 2, 3])
    for step in (2, 3):
        shutil.rmtree(tmp_path / str(step) / "state")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="3' is damaged .* delete that folder"):
            checkpoints.restore(make_state(), step=3)
        assert checkpoints.restore(make_state())[1] == {"step": 1}
        checkpoints.save(2, make_state(2), {"step": 2, "again": True})
    assert Checkpoints(tmp_path).restore(make_state())[1] == {"step": 2, "again": True}
    for step in Checkpoints(tmp_path).steps():
        shutil.rmtree(tmp_path / str(step) / "state")
    capsys.readouterr()
    with pytest.raises(UserError, match="Every checkpoint .* is damaged"):
        Checkpoints(tmp_path).restore(make_state())
    assert "warning" not in capsys.readouterr().err  # The error says it all, once.


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds 'notes.txt' but no checkpoints of AlphaLLM"):
        Checkpoints(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        Checkpoints(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpoints(tmp_path / "absent").restore({})
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_foreign_step_is_passed_over(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "model.pt").write_bytes(b"else")
    assert Checkpoints(tmp_path).restore(make_state())[1] == {"step": 1}


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2), {"step": 2})
        checkpoints.wait()

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints._writer, "save", full)
        with pytest.raises(UserError, match=r"the disk is full.*\[1, 2\] are whole"):
            checkpoints.save(3, make_state(3), {})
    assert Checkpoints(tmp_path).restore(make_state())[1] == {"step": 2}


# Saves a checkpoint, then one that the disk has no room for; its log goes to stderr, as that of a training does.
FILLER = """
import sys
import numpy as np
from alphallm.errors import UserError
from alphallm.training.checkpoints import Checkpoints
random = np.random.default_rng(0)
states = [{"w": random.normal(size=size).astype(np.float32)} for size in (200_000, 900_000)]
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        for step, state in enumerate(states, 1):
            checkpoints.save(step, state, {"step": step})
except UserError as error:
    print(error)
"""


def test_a_disk_that_is_really_full_loses_nothing(tmp_path):
    mounted = tmp_path / "tiny"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        random = np.random.default_rng(0)
        state = {"w": random.normal(size=200_000).astype(np.float32)}
        filler = subprocess.run(
            [sys.executable, "-c", FILLER, str(mounted / "c")],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "the disk is full" in filler.stdout
        assert filler.stderr == ""  # What Orbax's threads met is ours to tell.
        found, meta = Checkpoints(mounted / "c").restore(state)
        assert meta == {"step": 1}
        np.testing.assert_array_equal(found["w"], state["w"])
        with Checkpoints(mounted / "c") as checkpoints:  # the half-written one must not stay in the way
            checkpoints.save(3, state, {"step": 3})
        assert Checkpoints(mounted / "c").restore(state)[1] == {"step": 3}
        assert sorted(os.listdir(mounted / "c")) == ["1", "3", "ALPHALLM_CHECKPOINTS"]
    finally:
        # Lazily: a thread of Orbax may still have a file open.
        subprocess.run(["umount", "-l", str(mounted)], check=True)


SAVER = """
import sys
import numpy as np
from alphallm.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range((checkpoints.latest() or 0) + 1, 100_000):
    checkpoints.save(step, {"w": np.full((300, 10_000), step, np.float32), "step": np.int32(step)}, {"step": step})
    print(step, flush=True)
"""


def test_a_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path):
    template = {"w": np.zeros((300, 10_000), np.float32), "step": np.int32(0)}
    random, before = np.random.default_rng(0), 0
    for _ in range(3):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path / "c")],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdout=subprocess.PIPE,
        )
        assert saver.stdout is not None
        started = [saver.stdout.readline() for _ in range(3)]
        time.sleep(random.uniform(0, 0.3))
        saver.send_signal(signal.SIGKILL)
        saver.communicate()
        found, meta = Checkpoints(tmp_path / "c").restore(template)
        assert meta["step"] >= int(started[-1]) - 1 > before  # all but the last of those started were complete
        assert meta["step"] == found["step"] and np.all(found["w"] == meta["step"])
        before = meta["step"]
