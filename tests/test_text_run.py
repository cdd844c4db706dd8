"""A run on questions in words, from training to an answer, with a tokenizer of its own."""

import json
import types

import pytest

from alphallm import evaluate, solve
from alphallm.config import apply_overrides, load_config
from alphallm.errors import UserError
from alphallm.tasks import TextTaskConfig, make_task
from alphallm.training.loop import load_params, train
from experiments import survival
from tests.tasks import worked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three ticks."""
    folder = tmp_path_factory.mktemp("text")
    overrides = {
        **survival.TINY, "training.overfit": "", "warm_start.data": "solutions", "warm_start.num_steps": 40,
        "warm_start.sequence_tokens": 256, "training.num_iterations": 1, "evaluation.num_problems": 2,
    }  # fmt: skip
    config = apply_overrides(load_config(survival.REPOSITORY / survival.CONFIG), overrides)
    task = TextTaskConfig(
        name="jsonl", manual_dir=worked.write(folder / "data"), vocabulary_size=400, max_prompt_tokens=64,
        max_step_tokens=40, max_steps=3, calculator=True,
    )  # fmt: skip
    config = apply_overrides(config, {"task": task})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        train(config, str(folder / "run"))
        yield folder / "run"


def solved(monkeypatch, folder, question, mode=""):
    options = {"workdir": str(folder), "simulations": 0, "mode": mode, "targets": False, "tree": "", "seed": 0}
    monkeypatch.setattr(solve.flags, "FLAGS", types.SimpleNamespace(params="average", **options))
    solve.main([question], {})


def compared(monkeypatch, run, output, **changed):
    options = {
        "workdir": [str(run / "export")], "split": "test", "strategies": ["greedy", "best_of_n"],
        "budgets": ["400"], "modes": ["verified", "value_only"], "seeds": 1, "num_problems": 4, "params": "average",
        "batch_size": 4, "axis": "tokens", "pool": False, "manual_dir": str(run.parent / "data"), "output": str(output),
    }  # fmt: skip
    monkeypatch.setattr(evaluate.flags, "FLAGS", types.SimpleNamespace(**(options | changed)))
    evaluate.main([], {})


def test_it_learns_and_judges_by_value_alone(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/policy"] for row in rows if "loss/policy" in row]
    assert losses[1] < losses[0] - 0.5
    measured = {name for row in rows for name in row if name.startswith("validation/")}
    assert measured == {"validation/greedy", "validation/value greedy", "validation/search, value only"}


def test_an_export_carries_its_tokenizer(run):
    config, params = load_params(str(run / "export"))
    assert config.task.tokenizer == str(run / "export") and config.task.manual_dir == ""
    assert json.loads((run / "export" / "config.json").read_text())["task"]["tokenizer"] == ""
    assert (run / "export" / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert len(params["embedding"]) == make_task(config.task).vocabulary.size


def test_a_question_is_answered_and_not_verified(run, monkeypatch, capsys):
    question = worked.rows(70, 1)[0]["question"]
    solved(monkeypatch, run / "export", question)
    told = capsys.readouterr().out
    assert question in told and "value_only" in told
    assert "The answer is not verified" in told
    with pytest.raises(UserError, match="does not verify itself"):
        solved(monkeypatch, run / "export", question, mode="verified")


def test_strategies_are_compared_without_the_answers(run, monkeypatch, capsys, tmp_path):
    compared(monkeypatch, run, tmp_path)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert {(row["strategy"], row["mode"]) for row in rows} == {
        ("greedy", "both"), ("best_of_n", "value_only"),
    }  # fmt: skip
    assert "Solve rates" in capsys.readouterr().out
    with pytest.raises(UserError, match="There is nothing to evaluate"):
        compared(monkeypatch, run, tmp_path, strategies=["best_of_n"], modes=["verified"])
