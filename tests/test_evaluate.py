"""The command that compares, on an untrained tiny model and a small countdown."""

import json
import os
import subprocess
import sys
import types

import jax
import pytest

from alphallm import evaluate
from alphallm.config import to_dict
from alphallm.errors import UserError
from alphallm.evaluation import MODES, STRATEGIES
from alphallm.models import LanguageModel, ModelConfig
from alphallm.models.export import export_weights
from alphallm.search import SearchConfig
from alphallm.tasks import ArithmeticConfig, make_task
from alphallm.training.config import Config

TINY = ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16)
TASK = ArithmeticConfig(name="countdown", num_numbers=2, max_number=9, max_target=20)


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("datasets")))
        yield


def exported(folder, task=TASK, seed=0):
    config = Config(task=task, model=TINY, search=SearchConfig(num_candidates=4))
    model = LanguageModel(TINY, make_task(task).vocabulary.size)
    export_weights(folder, model.init(jax.random.key(seed)), to_dict(config), {})
    return str(folder)


def options(workdirs, **changed):
    values = {
        "workdir": workdirs, "split": "test", "strategies": list(STRATEGIES), "budgets": [], "modes": list(MODES),
        "seeds": 1, "num_problems": 0, "params": "average", "batch_size": 64, "axis": "tokens", "output": "",
        "pool": False, "manual_dir": "",
    }  # fmt: skip
    assert changed.keys() <= values.keys()
    return types.SimpleNamespace(**{**values, **changed})


def run(monkeypatch, workdirs, arguments=(), **changed):
    monkeypatch.setattr(evaluate.flags, "FLAGS", options(workdirs, **changed))
    evaluate.main(list(arguments), {})


def test_two_runs_are_compared_and_written(tmp_path, monkeypatch, capsys):
    workdirs = [exported(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    evaluate.compare._program.cache_clear()
    written = []
    write = evaluate.report.write_json
    monkeypatch.setattr(
        evaluate.report, "write_json", lambda path, rows, about: (written.append(len(rows)), write(path, rows, about))
    )
    asked = {"strategies": ["greedy", "best_of_n"], "modes": ["verified"], "budgets": ["16"]}
    run(monkeypatch, workdirs, num_problems=5, seeds=2, **asked)
    shown = capsys.readouterr().out
    assert written == [1, 2, 3, 4]  # a stopped comparison keeps what it has
    assert (
        "4 rows to run, of 5 problems and 2 seed(s): at most 480 tokens" in shown
    )  # 2 runs, (8 + 16) tokens, 10 answers
    assert "row 1/4" in shown
    assert "Paired differences" in shown
    content = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert [(row["run"], row["strategy"], row["knob"]) for row in content["rows"]] == [
        ("a", "greedy", ""), ("a", "best_of_n", "N=2"), ("b", "greedy", ""), ("b", "best_of_n", "N=2"),
    ]  # fmt: skip
    assert [len(row["solved_by_seed_and_problem"]) for row in content["rows"]] == [1, 2, 1, 2]
    assert all(len(row["solved_by_seed_and_problem"][0]) == 5 for row in content["rows"])
    assert content["num_problems"] == 5
    assert content["rows"][0]["tokens"] <= 8
    assert (tmp_path / "a" / "evaluation.png").exists()
    assert evaluate.compare._program.cache_info().misses == 2  # equal models and tasks are compiled once
    tables = (tmp_path / "a" / "evaluation.md").read_text()
    assert "| a | best_of_n | verified | 16 | N=2 |" in tables and "Between runs" in tables
    run(monkeypatch, workdirs, num_problems=5, seeds=2, pool=True, **asked)
    tables = (tmp_path / "a" / "evaluation.md").read_text()
    assert "| 2 runs | best_of_n | verified | 16 | N=2 |" in tables and "Between runs" not in tables
    assert len(json.loads((tmp_path / "a" / "evaluation.json").read_text())["rows"]) == 4  # as they were


def test_the_ranked_puzzles_are_read_where_the_user_says(tmp_path, monkeypatch):
    folder = exported(tmp_path / "a", ArithmeticConfig(dataset="tot", manual_dir=str(tmp_path / "of another machine")))
    for manual_dir, looked in ((str(tmp_path / "here"), "here"), ("", "of another machine")):
        with pytest.raises(UserError, match=f"{looked}/24.csv does not exist"):
            run(monkeypatch, [folder], manual_dir=manual_dir, budgets=["300"])


def test_a_stopped_comparison_goes_on_and_a_finished_one_can_be_added_to(tmp_path, monkeypatch, capsys):
    folder = exported(tmp_path / "a")
    path = tmp_path / "a" / "evaluation.json"
    asked = {"modes": ["verified"], "budgets": ["16"], "num_problems": 5}
    run(monkeypatch, [folder], strategies=["greedy", "best_of_n"], **asked)
    once = json.loads(path.read_text())["rows"]
    solve_all = evaluate.compare.solve_all
    ran = []
    monkeypatch.setattr(evaluate.compare, "solve_all", lambda *args: (ran.append(args[2].name), solve_all(*args))[1])
    run(monkeypatch, [folder], strategies=["value_greedy", "greedy"], **asked)
    assert ran == ["value_greedy"]
    assert json.loads(path.read_text())["rows"][1:] == once
    capsys.readouterr()
    run(monkeypatch, [folder], strategies=["value_greedy", "greedy", "best_of_n"], **asked)
    assert ran == ["value_greedy"]
    shown = capsys.readouterr().out
    assert "0 rows to run, of 5 problems and 1 seed(s): at most 0 tokens" in shown and "best_of_n" in shown
    # Other weights of the same name, and other problems, are other rows.
    exported(tmp_path / "a", seed=1)
    run(monkeypatch, [folder], strategies=["greedy"], **asked)
    assert ran == ["value_greedy", "greedy"]
    run(monkeypatch, [folder], strategies=["greedy"], **{**asked, "num_problems": 4})
    assert "moved to" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "a" / "evaluation.1.json").read_text())["rows"]) == 4
    assert len(json.loads(path.read_text())["rows"]) == 1
    path.write_text('{"rows": [')
    run(monkeypatch, [folder], strategies=["greedy"], **{**asked, "num_problems": 4})
    assert "can not be read as results of this version: moved to" in capsys.readouterr().out
    assert (tmp_path / "a" / "evaluation.2.json").read_text() == '{"rows": ['


def test_a_budget_that_is_too_small_for_a_strategy_leaves_its_row_out(tmp_path, monkeypatch, capsys):
    planned = []
    monkeypatch.setattr(evaluate, "run", lambda contestants, plan, *_: planned.extend(plan))
    monkeypatch.setattr(evaluate, "show", lambda *_: None)
    run(monkeypatch, [exported(tmp_path / "a")], strategies=["best_of_n", "beam"], budgets=["32", "20"])
    assert {(budget, strategy.name) for budget, strategy in planned[0]} == {
        (20, "best_of_n"), (32, "best_of_n"), (32, "beam")
    }  # fmt: skip
    assert "a: beam needs 32 generated tokens a problem, so it is left out at 20." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"strategies": ["greedy", "serch"]}, "Unknown strategy 'serch': give one or more of greedy, .*search"),
        ({"modes": ["blind"]}, "Unknown mode 'blind'.*value_only"),
        ({"budgets": ["300", "much"]}, "--budgets has 'much'"),
        ({"budgets": ["7"]}, "greedy can not be run within 7 .* smallest budget is 8"),
        ({"budgets": ["20"], "strategies": ["search"]}, "search can not be run within 20 .* smallest budget is 24"),
        ({"axis": "joules"}, "Unknown --axis 'joules': give one or more of tokens, flops, seconds"),
        ({"seeds": 0}, "--seeds=0"),
        ({"batch_size": 0}, "--batch_size=0"),
        ({"split": "tset"}, "Unknown split 'tset'"),
        ({"num_problems": 10**6}, "--num_problems=1000000, but the split 'test' has"),
        ({"params": "best"}, "Unknown choice of --params 'best'"),
        ({"strategies": []}, "nothing to evaluate"),
        ({"strategies": ["pass_at_k"], "modes": ["value_only"]}, "none of pass_at_k has the mode value_only"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(tmp_path, monkeypatch, changed, words):
    monkeypatch.setattr(evaluate, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(UserError, match=words):
        run(monkeypatch, [exported(tmp_path / "a")], **changed)


def test_wrong_workdirs_are_told(tmp_path, monkeypatch):
    folder = exported(tmp_path / "a")
    for workdirs, words in (([], "Give --workdir"), ([folder, folder], "twice"), ([str(tmp_path / "none")], "none")):
        with pytest.raises(UserError, match=words):
            run(monkeypatch, workdirs)
    with pytest.raises(UserError, match="'stray' is not an option"):
        run(monkeypatch, [folder], ["stray"])


def test_runs_on_other_problems_are_not_compared(tmp_path, monkeypatch):
    other = ArithmeticConfig(name="countdown", num_numbers=2, max_number=8, max_target=20)
    workdirs = [exported(tmp_path / "a"), exported(tmp_path / "b", other)]
    with pytest.raises(UserError, match="a and b have different test problems"):
        run(monkeypatch, workdirs)


def test_names_are_the_shortest_that_differ():
    assert evaluate.run_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert evaluate.run_names(["runs/a/warm_start", "runs/b/warm_start"]) == ["a/warm_start", "b/warm_start"]


def test_a_problem_keeps_its_index_when_fewer_are_taken(tmp_path):
    config, params = evaluate.load(exported(tmp_path / "a"), "average")
    entered = evaluate.enter(["a"], [(config, params)])
    few, all_ = (evaluate.common_problems(entered, [config], "test", number) for number in (4, 0))
    assert len(few.index) == 4
    assert few.index.tolist() != list(range(4))
    assert (few.tokens_P == all_.tokens_P[few.index]).all()


@pytest.mark.smallest
def test_the_command_fails_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "alphallm.evaluate", f"--workdir={tmp_path / 'none'}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
