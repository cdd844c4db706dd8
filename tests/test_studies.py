"""What the studies share."""

import pytest

from alphallm.config import apply_overrides, load_config
from alphallm.errors import UserError
from alphallm.models import LanguageModel
from alphallm.tasks import make_task
from experiments import studies
from experiments.igsm import run as igsm
from experiments.scaling.run import training_flops
from experiments.zero_vs_imitation import run as zero


def test_whole_numbers_are_read_or_refused():
    assert studies.whole_numbers("depths", ["1", " 12"], 1) == [1, 12]
    for values in ([], ["0"], ["-1"], ["1.5"], ["two"]):
        with pytest.raises(UserError, match=f"--depths={','.join(values)}: give whole numbers of 1 or more"):
            studies.whole_numbers("depths", values, 1)


def test_a_table_has_a_line_for_each(tmp_path):
    studies.write_markdown(str(tmp_path / "table.md"), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
    assert (tmp_path / "table.md").read_text() == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |\n"


def test_results_are_read_again_only_by_the_same_study(tmp_path):
    settings = {"ops": [3, 4], "config": {"width": 96, "range": (2, 6)}}
    assert studies.read_results(str(tmp_path / "none"), settings) == {}
    studies.write_results(str(tmp_path), settings, {"a": {"solved": 1}})
    assert studies.read_results(str(tmp_path), settings) == {"a": {"solved": 1}}
    with pytest.raises(UserError, match="was made with another ops"):
        studies.read_results(str(tmp_path), settings | {"ops": [3]})


def test_an_override_is_a_field_and_its_value():
    changed = studies.study_config(igsm.CONFIG, igsm.IMITATION, ["warm_start.num_steps=7"])
    assert (changed.training.num_iterations, changed.warm_start.num_steps) == (0, 7)
    with pytest.raises(UserError, match="give FIELD=VALUE"):
        studies.study_config(igsm.CONFIG, {}, ["warm_start.num_steps"])


def test_igsm_sums_over_seeds(tmp_path):
    counts = {"asked": 10, "solved": 4, "unneeded": 5, "back": 1}
    rows = [
        {"retry": retry, "seed": seed, "seconds": 60, "answers": {"greedy": {"3": counts, "4": dict(counts, solved=0)}}}
        for retry in (False, True)
        for seed in (0, 1)
    ]
    igsm.report(3, [3, 4], rows, str(tmp_path))
    plain, retry = igsm.table([3, 4], rows)
    assert plain[""] == "plain data, greedy" and retry[""] == "retry data, greedy"
    assert plain["seeds"] == 2 and plain["unneeded steps"] == "0.50" and plain["BACK"] == "0.10"
    assert str(plain["3 ops"]).startswith("0.40 ") and str(plain["4 ops"]).startswith("0.00 ")
    assert (tmp_path / "table.md").exists() and (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("ops", [3, 6])
def test_igsm_asks_for_problems_of_one_number_of_operations(ops):
    config = load_config(igsm.CONFIG).task
    task, rows = make_task(config), igsm.rows_of(config, ops, 20)
    # A step has one operation, or two.
    steps = [len(task.solutions(row, 1)[0]) for row in rows]
    assert len(set(rows)) == 20 and max(steps) == ops and min(steps) >= ops / 2


def test_arms_spend_as_much_on_imitation_as_on_self_play():
    base = load_config("configs/blocksworld_zero_cpu.py")
    assert zero.fields_of("rules alone", base, None) == {}
    flops = 3e13
    imitation, both = (zero.fields_of(arm, base, flops) for arm in ("imitation", "both"))
    config = apply_overrides(base, imitation)
    task = make_task(config.task)
    model = LanguageModel(config.model, task.vocabulary.size)
    steps = imitation["warm_start.num_steps"]
    assert training_flops(config, task, model, [], steps) == pytest.approx(flops, rel=0.01)
    assert imitation["training.num_iterations"] == 0 and both["training.num_iterations"] > 0
    assert both["warm_start.num_steps"] == pytest.approx(steps / 2, abs=1)


def test_the_arms_have_a_line_each_over_their_seeds(tmp_path):
    answers = {
        "greedy": {"solved": [1, 0, 0, 0], "tokens": 9.0},
        "search, 100": {"solved": [1, 1, 1, 0], "tokens": 80.0},
    }
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "FLOPs": 2e15,
            "curve": [(1e14, 0.1), (2e15, 0.25)],
            "answers": answers,
        }
        for arm in ("rules alone", "both")
        for seed in (0, 1)
    ]
    zero.report(runs, str(tmp_path))
    rules, both = zero.table(runs)
    assert (rules[""], both[""]) == ("rules alone", "both") and rules["seeds"] == 2
    assert rules["training, PFLOP"] == "2.00"
    assert str(rules["greedy"]).startswith("0.250 [") and str(both["search, 100"]).startswith("0.750 [")
    assert (tmp_path / "table.md").exists() and (tmp_path / "figure.png").stat().st_size > 10_000
