"""The command that solves one problem, on an untrained tiny model."""

import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from alphallm import solve
from alphallm.config import to_dict
from alphallm.errors import UserError
from alphallm.models import LanguageModel, ModelConfig
from alphallm.models.export import export_weights
from alphallm.search import SearchConfig
from alphallm.tasks import ArithmeticConfig, make_task
from alphallm.training.config import Config

TINY = ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16)
GAME24 = ArithmeticConfig()
COUNTDOWN = ArithmeticConfig(name="countdown", num_numbers=2, max_number=9, max_target=20)


def exported(folder, task, **search):
    config = Config(task=task, model=TINY, search=SearchConfig(num_simulations=2, num_candidates=4, **search))
    model = LanguageModel(TINY, make_task(task).vocabulary.size)
    export_weights(folder, model.init(jax.random.key(0)), to_dict(config), {})
    return str(folder)


def run(monkeypatch, arguments, **changed):
    values = {
        "workdir": "", "task_file": "", "simulations": 2, "mode": "verified", "targets": False, "tree": "",
        "params": "average",
        "seed": 0, **changed
    }  # fmt: skip
    monkeypatch.setattr(solve.flags, "FLAGS", types.SimpleNamespace(**values))
    solve.main(arguments, {})


def test_a_found_answer_is_shown_with_visits_values_and_targets(tmp_path, monkeypatch, capsys):
    # All legal steps are listed, so that even an untrained model solves a problem of one step.
    workdir = exported(tmp_path, COUNTDOWN, proposer="listed")
    page = tmp_path / "tree.html"
    run(monkeypatch, ["3 5 -> 15"], workdir=workdir, targets=True, tree=str(page))
    shown = capsys.readouterr().out
    assert "5 * 3 = 15" in page.read_text() and str(page) in shown
    assert "5 * 3 = 15" in shown
    for column in ("visits", "value", "prior", "policy target", "planned value"):
        assert column in shown
    assert "The verifier accepts it." in shown
    assert "Targets at node 1 of the path: value 1.000" in shown
    assert "5 + 3 = 8" in shown  # a candidate beside the chosen one
    assert "(all other steps)" in shown


def test_the_likeliest_answer_stands_in_and_is_rejected(tmp_path, monkeypatch, capsys):
    run(monkeypatch, ["3 5 -> 15"], workdir=exported(tmp_path, COUNTDOWN))
    shown = capsys.readouterr().out
    assert "no finished answer" in shown
    assert "The verifier rejects it" in shown
    assert "policy target" not in shown


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["13 - 10 = 3\n", "9 - 3 = 6\n", "6 * 4 = 24\n"], "accepts"),
        (["13 - 10 = 3\n", "9 - 3 = 6\n", "6 + 4 = 10\n"], "rejects it: the result is wrong"),
        (["13 - 10 = 2\n", "9 - 3 = 6\n", "6 * 4 = 24\n"], "rejects it: a step breaks the rules"),
        (["13 - 10 = 3\n"], "rejects it: it is not complete"),
    ],
)
def test_the_verdict_in_words(steps, words):
    task = make_task(GAME24)
    tokens, lengths = np.zeros((1, 3, task.max_step), np.int32), np.zeros((1, 3), np.int32)
    for i, step in enumerate(steps):
        written = task.vocabulary.encode(step)
        tokens[0, i, : len(written)], lengths[0, i] = written, len(written)
    problem = jax.tree.map(lambda x: np.asarray(x)[None], task.problem("4 9 10 13"))
    assert words in solve.verdict(task, problem, types.SimpleNamespace(tokens_BDL=tokens, length_BD=lengths))


@pytest.mark.parametrize(
    ("arguments", "changed", "words"),
    [
        (["4 9 ten"], {}, "'ten', which is not a whole number"),
        (["1 1 1 1"], {}, "cannot be made into 24"),
        ([], {}, "one problem in quotes"),
        (["4", "9", "10", "13"], {}, "one problem in quotes.*not 4"),
        (["4 9 10 13"], {"mode": "blind"}, "Unknown mode 'blind'"),
        (["4 9 10 13"], {"simulations": -1}, "--simulations=-1"),
        (["4 9 10 13"], {"task_file": "a.pddl"}, "Give one problem: '4 9 10 13' or --task_file=a.pddl"),
        ([], {"task_file": "/nowhere.pddl"}, "--task_file=/nowhere.pddl can not be read"),
        ([], {"task_file": __file__}, "The task game24 reads no files"),
        (["4 9 10 13"], {"params": "best"}, "Unknown choice of --params"),
        (["4 9 10 13"], {"workdir": ""}, "Give --workdir"),
        (["4 9 10 13"], {"workdir": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_input_is_told(tmp_path, monkeypatch, arguments, changed, words):
    workdir = exported(tmp_path, GAME24)
    with pytest.raises(UserError, match=words):
        run(monkeypatch, arguments, **{"workdir": workdir, **changed})


def test_the_command_fails_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "alphallm.solve", f"--workdir={exported(tmp_path, GAME24)}", "4 9 ten"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
