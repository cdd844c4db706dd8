"""The config system: typed overrides, JSON round trip, and errors that say what to do."""

import ast
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Literal

import pytest

from alphallm.config import (
    apply_overrides,
    differences,
    from_dict,
    load_config,
    split_overrides,
    to_dict,
)
from alphallm.errors import ConfigError, UserError


@dataclasses.dataclass(frozen=True)
class Search:
    num_simulations: int = 32
    policy: Literal["gumbel", "puct"] = "gumbel"
    max_considered: int | None = None

    def __post_init__(self):
        if self.max_considered is not None and self.max_considered > self.num_simulations:
            raise ValueError(f"max_considered {self.max_considered} exceeds num_simulations {self.num_simulations}.")


@dataclasses.dataclass(frozen=True)
class Learner:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    widths: tuple[int, ...] = (64, 64)


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    search: Search = Search()
    learner: Learner = Learner()
    evaluation_search: Search | None = None
    ema: bool = False


RUN = Run(name="test")
REPOSITORY = str(pathlib.Path(__file__).parents[1])


@pytest.mark.parametrize(
    "path, text, value",
    [
        ("search.num_simulations", "64", 64),
        ("search.policy", "puct", "puct"),
        ("search.max_considered", "8", 8),
        ("search.max_considered", "none", None),
        ("learner.rate", "3e-4", 3e-4),
        ("learner.rate", "1", 1.0),
        ("learner.betas", "0.8, 0.99", (0.8, 0.99)),
        ("learner.widths", "(1,2,3)", (1, 2, 3)),
        ("learner.widths", "", ()),
        ("learner.widths", [7], (7,)),
        ("learner.rate", 2, 2.0),
        ("name", "none", "none"),
        ("name", " a,b=c ", " a,b=c "),
        ("ema", "true", True),
        ("ema", "False", False),
        ("ema", True, True),
    ],
)
def test_an_override_is_parsed_by_its_annotation(path, text, value):
    new = apply_overrides(RUN, {path: text})
    for name in path.split("."):
        new = getattr(new, name)
    assert new == value and type(new) is type(value)
    assert Run(name="test") == RUN, "the config given must not change"


@pytest.mark.parametrize(
    "path, text, words",
    [
        ("search.num_simulatons", "64", "'search.num_simulations'"),
        ("serch.num_simulations", "64", "'search.num_simulations'"),
        ("num_simulations", "64", "'search.num_simulations'"),
        ("search.num_simulations.x", "64", "'search.num_simulations'"),
        ("", "64", "no field ''"),
        ("search.num_simulations", "6.5", "an integer"),
        ("search.num_simulations", "", "an integer"),
        ("search.num_simulations", True, "an integer"),
        ("search.num_simulations", 6.0, "an integer"),
        ("search.policy", "uct", "one of gumbel, puct"),
        ("search.max_considered", "few", "an integer or none"),
        ("learner.rate", "fast", "a number"),
        ("learner.betas", "0.9", "2 values"),
        ("learner.widths", "1,x", "an integer"),
        ("ema", "maybe", "true or false"),
        ("search", "puct", "num_simulations, policy, max_considered"),
        ("evaluation_search.policy", "puct", "'search.policy'"),
    ],
)
def test_a_wrong_override_says_what_is_allowed(path, text, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RUN, {path: text})
    assert words in str(caught.value) and path in str(caught.value)


def test_overrides_of_one_dataclass_are_applied_together():
    small = apply_overrides(RUN, {"search.num_simulations": "4"})
    assert small.search.num_simulations == 4
    for order in (
        ["search.max_considered", "search.num_simulations"],
        ["search.num_simulations", "search.max_considered"],
    ):
        assert apply_overrides(small, dict.fromkeys(order, "16")).search.max_considered == 16
    with pytest.raises(ConfigError, match="search: max_considered 16 exceeds num_simulations 4"):
        apply_overrides(small, {"search.max_considered": "16"})


def test_json_round_trip_gives_an_equal_config():
    config = dataclasses.replace(RUN, evaluation_search=Search(policy="puct"), learner=Learner(widths=(1, 2)))
    again = from_dict(Run, json.loads(json.dumps(to_dict(config))))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"name": "x", "nane": 1}, "nearest one is 'name'"),
        ({"name": "x", "search": {"policies": "puct"}}, "nearest one is 'search.policy'"),
        ({"name": "x", "evaluation_search": {"polcy": "puct"}}, "nearest one is 'evaluation_search.policy'"),
        ({"name": "x", "search": {"policy": "uct"}}, "one of gumbel, puct"),
        ({"name": 3}, "name: given 3, allowed: text"),
        ({}, "name is absent"),
        ({"name": "x", "search": 3}, "search: given 3"),
    ],
)
def test_a_wrong_dict_is_refused(values, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, values)
    assert words in str(caught.value)


def test_differences_are_listed_by_path():
    other = apply_overrides(RUN, {"search.num_simulations": "64", "ema": "1", "learner.widths": "1"})
    expected = ["search.num_simulations: 32 -> 64", "learner.widths: [64, 64] -> [1]", "ema: False -> True"]
    assert differences(RUN, other) == expected
    assert differences(RUN, RUN) == []
    assert differences(to_dict(RUN), other) == expected
    assert differences({"a": 1, "b": {"c": float("nan")}}, {"b": {"c": float("nan")}}) == ["a: 1 -> (absent)"]


def test_overrides_are_taken_out_of_the_command_line():
    argv = ["train", "--config=x.py", "--config.a.b=1=2", "--workdir", "w", "--config.c", "-3", "--", "--config.d=4"]
    remaining, overrides = split_overrides(argv)
    assert remaining == ["train", "--config=x.py", "--workdir", "w", "--", "--config.d=4"]
    assert overrides == {"a.b": "1=2", "c": "-3"}
    for argv in (["--config.a"], ["--config.a", "--workdir=w"]):
        with pytest.raises(ConfigError, match="--config.a=VALUE"):
            split_overrides(argv)


def test_a_config_file_is_loaded(tmp_path):
    (tmp_path / "x.py").write_text("from alphallm.errors import UserError\ndef get_config(): return UserError")
    (tmp_path / "good.py").write_text(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass C:\n  a: int\ndef get_config(): return C(2)\n"
    )
    config = load_config(tmp_path / "good.py")
    assert apply_overrides(config, {"a": "3"}).a == 3
    (tmp_path / "none.py").write_text("")
    (tmp_path / "syntax.py").write_text("\n)")
    (tmp_path / "crash.py").write_text("def get_config():\n  return 1 / 0\n")
    for name, words in [
        ("goood.py", "good.py"),
        ("x.py", "must return an instance of a dataclass"),
        ("none.py", "defines no get_config"),
        ("syntax.py", "line 2"),
        ("crash.py", "in line 2: ZeroDivisionError"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert words in str(caught.value)


MAIN = """
import dataclasses, sys
from absl import flags, logging
from alphallm.config import apply_overrides, run_main
from alphallm.errors import UserError
flags.DEFINE_string("workdir", None, "where")

@dataclasses.dataclass(frozen=True)
class C:
    steps: int = 1

def main(arguments, overrides):
    logging.info("noise")
    config = apply_overrides(C(), overrides)
    if config.steps == 7:
        raise UserError("seven\\nis not allowed.")
    print(arguments, flags.FLAGS.workdir, config.steps)

run_main(main, takes_overrides=sys.argv[1] == "yes")
"""


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["yes", "--workdir=w", "--config.steps=3", "4 9"], 0, "['yes', '4 9'] w 3"),
        (["yes", "--config.stops=3"], 1, "error: The config has no field 'stops'; the nearest one is 'steps'."),
        (["yes", "--config.steps=7"], 1, "error: seven is not allowed."),
        (["yes", "--config.steps"], 1, "error: --config.steps has no value"),
        (["no", "--config.steps=3"], 1, "config.steps"),
        (["yes", "--workdr=w"], 1, "workdir"),
    ],
)
def test_a_command_ends_with_a_sentence_and_a_status(tmp_path, arguments, status, words):
    script = tmp_path / "main.py"
    script.write_text(textwrap.dedent(MAIN))
    command, environment = [sys.executable, script, *arguments], {**os.environ, "PYTHONPATH": REPOSITORY}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr and "noise" not in ended.stderr
    assert words in (ended.stderr if status else ended.stdout)
    if ended.stderr.startswith("error:"):
        assert ended.stderr.count("\n") == 1


def test_every_field_of_a_config_is_read_somewhere():
    trees = [ast.parse(path.read_text()) for path in sorted(pathlib.Path(REPOSITORY, "alphallm").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    configs = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    fields = {
        (config.name, line.target.id) for config in configs for line in config.body if isinstance(line, ast.AnnAssign)
    }
    assert fields
    assert sorted(f"{config}.{field}" for config, field in fields if field not in read) == []


def test_config_errors_are_user_errors():
    assert issubclass(ConfigError, UserError) and issubclass(UserError, ValueError)
