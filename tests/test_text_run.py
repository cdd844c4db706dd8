"""A run on questions in words, from training to an answer, with a tokenizer of its own."""

import json
import shutil
import types

import pytest

from alphallm import evaluate, filter_calls, solve
from alphallm.config import apply_overrides, from_dict, load_config
from alphallm.errors import UserError
from alphallm.tasks import TextConfig, make_task, text
from alphallm.tasks import tokenizer as tokenizer_lib
from alphallm.training.config import Config
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
    task = TextConfig(
        name="jsonl", manual_dir=worked.write(folder / "data"), vocabulary_size=400, max_prompt_tokens=64,
        max_step_tokens=40, max_steps=3, calculator=True,
    )  # fmt: skip
    config = apply_overrides(config, {"task": task})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        train(config, str(folder / "run"))
        yield folder / "run"


def solved(monkeypatch, folder, question, mode=""):
    options = {
        "workdir": str(folder),
        "task_file": "",
        "simulations": 0,
        "mode": mode,
        "targets": False,
        "tree": "",
        "seed": 0,
    }
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


def test_it_goes_on_with_the_tokenizer_of_its_folder(run, monkeypatch):
    # Where the run began, the tokenizer was trained; what is learnt belongs to that one, whatever training gives now.
    monkeypatch.setattr(tokenizer_lib, "train", None)
    config = from_dict(Config, json.loads((run / "config.json").read_text()))
    text.tokenizer_of.cache_clear()
    before = (run / "export" / "weights.safetensors").read_bytes()
    assert train(config, str(run)).keys() == {"greedy", "value greedy", "search, value only"}
    assert (run / "export" / "weights.safetensors").read_bytes() == before


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


def test_runs_with_other_tokens_are_not_compared(run, monkeypatch, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "export", other)
    questions = [f"Question: {row['question']}\nAnswer:\n" for row in worked.rows(0, 60)]
    tokenizer_lib.train(questions, 310, "\n").save(other)
    with pytest.raises(UserError, match="read the test problems in different tokens"):
        compared(monkeypatch, run, tmp_path, workdir=[str(run / "export"), str(other)])


def test_calls_are_filtered_into_a_new_dataset(run, monkeypatch, tmp_path):
    options = {"workdir": str(run / "export"), "manual_dir": str(run.parent / "data"), "output": str(tmp_path / "data")}
    for threshold, kept in ((-1e9, 2), (1e9, 0)):
        monkeypatch.setattr(
            filter_calls.flags, "FLAGS", types.SimpleNamespace(**options, threshold=threshold, num_problems=3)
        )
        filter_calls.main([], {})
        rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
        assert [row["answer"].count("<<") for row in rows] == [kept] * 3
    assert len((tmp_path / "data" / "test.jsonl").read_text().splitlines()) == 12
