"""Every compiled function of the smallest config lowers for TPU, GPU and CPU, and what does not is told."""

import json
import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax import export

from alphallm.config import apply_overrides, load_config
from alphallm.errors import UserError
from alphallm.tasks import make_task
from alphallm.training import actor
from alphallm.training.loop import Trainer
from alphallm.training.signatures import signatures
from experiments import survival
from experiments.lowering import run
from tests.tasks import worked

CONFIG = apply_overrides(load_config(survival.REPOSITORY / survival.CONFIG), survival.TINY)
FUNCTIONS = {
    "warm start", "self-play", "learn", "evaluate: greedy", "evaluate: value_greedy", "evaluate: search",
    "evaluate: KL",
}  # fmt: skip


def test_the_smallest_config_lowers_for_all_platforms():
    rows = list(run.lowerings("debug", CONFIG, run.PLATFORMS))
    assert {(row.function, row.platform) for row in rows} == {(f, p) for f in FUNCTIONS for p in run.PLATFORMS}
    assert {row.result for row in rows} == {run.LOWERED}
    assert all(row.megabytes > 0.01 for row in rows)


def test_the_training_functions_are_those_of_all_devices(monkeypatch):
    """And one that calls the host is told, wherever in it the call is."""
    metrics = actor.metrics

    def printing(tree, *arguments):
        jax.lax.cond(jnp.any(tree.expanded_BN), lambda: jax.debug.print("expanded"), lambda: None)
        return metrics(tree, *arguments)

    monkeypatch.setattr(actor, "metrics", printing)
    trainer = Trainer(CONFIG)
    functions = signatures(trainer, jax.eval_shape(trainer.initial_state))
    assert run.lower(*functions["self-play"], "tpu") == ("calls the host: debug_print", None, None)
    function, arguments = functions["learn"]
    exported = export.export(jax.jit(function), platforms=["tpu"])(*arguments)
    assert exported.nr_devices == jax.local_device_count() == 2
    assert "all_reduce" in exported.mlir_module()


def test_what_does_not_lower_or_should_not_be_there_is_told():
    square = jax.ShapeDtypeStruct((3, 3), "float32")
    result, size, seconds = run.lower(jnp.linalg.eig, (square,), "tpu")
    assert result.startswith("NotImplementedError: ") and "'eig' not found for platform tpu" in result
    assert (size, seconds) == (None, None)
    assert run.lower(lambda x: x @ x, (square,), "tpu")[0] == run.LOWERED
    (number,) = export.symbolic_shape("n")
    assert run.lower(lambda x: 2 * x, (jax.ShapeDtypeStruct((number,), "float32"),), "tpu")[0] == "a shape is not fixed"
    with jax.enable_x64(True):
        assert run.lower(lambda x: x.astype("float64").sum().astype("float32"), (square,), "tpu")[0] == "float64"


def test_a_pretrained_models_config_has_its_own_vocabulary_size(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for name, equality in (("gsm8k_qwen2p5_0p5b", "integers"), ("math_qwen2p5_1p5b", "math")):
        config = load_config(survival.REPOSITORY / "configs" / f"{name}.py")
        worked.write(tmp_path / "gsm8k")
        replaced = run.with_stand_ins(config, str(tmp_path), str(tmp_path / name))
        task = make_task(replaced.task)
        assert task.vocabulary.size == run.VOCABULARY == 151_936
        assert (task.max_step, task.max_steps) == (config.task.max_step_tokens, config.task.max_steps)
        assert task.config.equality == equality and (task.tool is not None) == config.task.calculator
        assert (replaced.model, replaced.init_from) == (config.model, "")
        lowered = run.with_graded_answers_compared({name: config})
        also = {f"{name}, task.equality=integers": "integers"} if equality == "math" else {}
        assert {key: value.task.equality for key, value in lowered.items()} == {name: equality} | also


def test_the_command_writes_what_it_found_and_fails_where_something_did_not_lower(tmp_path, monkeypatch):
    square = jax.ShapeDtypeStruct((3, 3), "float32")
    called = lambda x: jax.pure_callback(lambda x: x, square, x)
    functions = {"fine": (jnp.linalg.inv, (square,)), "called": (called, (square,))}
    options = {"config": [survival.CONFIG], "platforms": ["tpu", "cpu"], "data": "", "output": str(tmp_path)}
    monkeypatch.chdir(survival.REPOSITORY)
    monkeypatch.setattr(run, "compiled_functions", lambda config: functions)
    monkeypatch.setattr(run.flags, "FLAGS", types.SimpleNamespace(**options))
    run.main([], {})  # A call of the host is an exception that is listed, not a failure.
    found = json.loads((tmp_path / "lowering.json").read_text())
    assert [row["result"] for row in found["rows"]] == [run.LOWERED] * 2 + ["calls the host: pure_callback"] * 2
    table = (tmp_path / "lowering.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in table[2:]] == [
        ["| debug", "fine", f"{found['rows'][0]['megabytes']:.2f} MB"],
        ["| debug", "called", "calls the host: pure_callback"],
    ]
    functions["bad"] = (jnp.linalg.eig, (square,))
    with pytest.raises(SystemExit, match="1 of 6 did not lower"):
        run.main([], {})
    monkeypatch.setattr(run.flags, "FLAGS", types.SimpleNamespace(**(options | {"platforms": ["gpu"]})))
    with pytest.raises(UserError, match="Unknown gpu: give --platforms of tpu, cuda, cpu"):
        run.main([], {})


def test_the_page_about_profiles_lists_the_named_scopes():
    code = [path.read_text() for path in survival.REPOSITORY.joinpath("alphallm").rglob("*.py")]
    scopes = {name for text in code for name in re.findall(r'named_scope\("(\w+)"\)', text)}
    page = survival.REPOSITORY.joinpath("docs", "profiling.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", page.partition("## Named scopes")[2].partition("\n## ")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == scopes
