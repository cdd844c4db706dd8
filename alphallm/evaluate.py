"""Compares strategies, budgets and runs: `python -m alphallm.evaluate --workdir=runs/a,runs/b --split=test`.

A workdir is a run's folder or one of exported weights; a run keeps those of its warm start in `warm_start`, and
`runs/a@120` is its checkpoint of step 120, if it was kept. A row is printed and written to evaluation.json as soon as
it is known; in the end come tables of all rows and of paired differences (evaluation.md), and evaluation.png. All files
go into the first workdir, or --output. Rows that evaluation.json has already are not run again, so a comparison that
was stopped goes on, and one that is finished can be added to. With --pool, tables and figure take the runs for seeds of
one config.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from alphallm.config import apply_overrides, differences, run_main, to_dict
from alphallm.display import Progress, duration, make_console, print_table
from alphallm.errors import UserError
from alphallm.evaluation import MODES, STRATEGIES, Contestant, Row, compare, evaluate, forecast, plan_all, plans, report
from alphallm.models import LanguageModel
from alphallm.tasks import data, make_task

PARAMS = ("average", "latest")


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_list("workdir", [], "Folders of runs or of exported weights, separated by commas.")
    flags.DEFINE_string("split", "test", "Which problems: train, validation or test.")
    flags.DEFINE_list(
        "strategies", list(plans.DEFAULT_STRATEGIES), f"Which strategies: all, or some of {', '.join(STRATEGIES)}."
    )
    flags.DEFINE_list("budgets", [], "Generated tokens per problem, at most; by default 300, 1000 and 3000.")
    flags.DEFINE_list("modes", list(MODES), f"What a strategy may see, of {', '.join(MODES)}.")
    flags.DEFINE_integer("seeds", 1, "How often each problem is answered, with other random numbers.")
    flags.DEFINE_integer("num_problems", 0, "How many problems of the split, drawn once for all; 0 takes all of them.")
    flags.DEFINE_string("params", "average", f"Which of a run's parameters, of {', '.join(PARAMS)}.")
    flags.DEFINE_integer("batch_size", compare.BATCH_SIZE, "Problems at once; fewer need less memory.")
    flags.DEFINE_string("axis", "tokens", f"What the figure has on its x axis, of {', '.join(report.AXES)}.")
    flags.DEFINE_bool(
        "pool", False, "In tables and figure, put the outcomes of all runs together: seeds of one config."
    )
    flags.DEFINE_string(
        "manual_dir", "", "The folder with 24.csv (datasets tot, tsllm); else the run's own, or a download."
    )
    flags.DEFINE_string("output", "", "The folder to write to; by default the first workdir.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options: Any = flags.FLAGS
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option; see --help for those that there are.")
    if options.strategies == ["all"]:
        options.strategies = list(STRATEGIES)
    check_options(options)
    loaded = [load(workdir, options.params, options.manual_dir) for workdir in options.workdir]
    contestants = enter(run_names(options.workdir), loaded)
    problems = common_problems(contestants, [config for config, _ in loaded], options.split, options.num_problems)
    budgets = [int(budget) for budget in options.budgets] or common_budgets(contestants, options.strategies)
    planned = [plan_all(one, options.strategies, options.modes, budgets) for one in contestants]
    about = {
        "split": options.split, "num_problems": len(problems.index), "seeds": options.seeds,
        "configs": [to_dict(config) for config, _ in loaded],
    }  # fmt: skip
    if not any(planned):
        raise UserError(
            f"There is nothing to evaluate: none of {', '.join(options.strategies)} has the mode "
            f"{' or '.join(options.modes)}."
        )
    output = options.output or folder_of(options.workdir[0])
    known = rows_of_before(os.path.join(output, report.JSON), about)
    rows = run(contestants, planned, problems, options, about, output, known)
    title = f"{options.split}, {len(problems.index)} problems, {options.seeds} seed(s)"
    show(report.pooled(rows) if options.pool else rows, output, title, options.axis)


def check_options(options: Any) -> None:
    if not options.workdir:
        raise UserError("Give --workdir=FOLDER, the folder of a run or of exported weights, or several with commas.")
    if len(set(options.workdir)) < len(options.workdir):
        raise UserError(f"--workdir={','.join(options.workdir)} names a folder twice: give each one once.")
    plans.check_names(options.strategies, STRATEGIES, "strategy")
    plans.check_names(options.modes, MODES, "mode")
    plans.check_names([options.params], PARAMS, "choice of --params")
    plans.check_names([options.axis], [*report.AXES], "--axis")
    if not options.strategies or not options.modes:
        raise UserError("There is nothing to evaluate: give at least one of --strategies and one of --modes.")
    for budget in options.budgets:
        if not budget.strip().isdecimal():
            raise UserError(f"--budgets has {budget!r}: give whole numbers of tokens with commas, as in 300,1000.")
    for name, least in (("seeds", 1), ("batch_size", 1), ("num_problems", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}={getattr(options, name)} is out of range: give {least} or more.")


def load(workdir: str, which: str, manual_dir: str = "") -> tuple[Any, Any]:
    """Config and parameters; the task's manual_dir replaced if one is given."""
    from alphallm.training.loop import load_params  # takes seconds to import, which a wrong option need not wait for

    config, params = load_params(workdir, which)
    if manual_dir:
        config = apply_overrides(config, {"task.manual_dir": manual_dir})
    return config, params


def folder_of(workdir: str) -> str:
    """A run's folder, also of one of its checkpoints."""
    from alphallm.training.loop import split_step

    return split_step(workdir)[0]


def enter(names: Sequence[str], loaded: Sequence[tuple[Any, Any]]) -> list[Contestant]:
    """The contestants. Those of the same model and task share both objects, and with them what is compiled."""
    known: list[tuple[Any, Any, LanguageModel]] = []
    contestants = []
    for name, (config, params) in zip(names, loaded, strict=True):
        same = [entry for entry in known if (entry[0].task, entry[0].model) == (config.task, config.model)]
        if not same:
            task = make_task(config.task)
            same = [(config, task, LanguageModel(config.model, task.vocabulary.size))]
            known += same
        _, task, model = same[0]
        contestants.append(Contestant(name, model, task, params, config.search))
    return contestants


def run_names(workdirs: Sequence[str]) -> list[str]:
    """Short names for the table that still differ: the ends of the paths, as long as needed."""
    parts = [os.path.abspath(workdir).strip(os.sep).split(os.sep) for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def common_problems(contestants: Sequence[Contestant], configs: Sequence[Any], split: str, num_problems: int) -> Any:
    """The split's problems, which must be the same for all runs; a problem's index is its place in the split."""
    texts = data.load_split(configs[0].task, split)
    for one, config in zip(contestants[1:], configs[1:], strict=True):
        if config.task != configs[0].task and data.load_split(config.task, split) != texts:
            told = "; ".join(differences(configs[0].task, config.task))
            raise UserError(
                f"{contestants[0].run} and {one.run} have different {split} problems ({told}), so that they can not be "
                "compared: evaluate them one by one."
            )
    if num_problems > len(texts):
        raise UserError(f"--num_problems={num_problems}, but the split {split!r} has {len(texts)} problems.")
    problems = data.load_problems(contestants[0].task, texts)
    for one in contestants[1:]:
        if one.task is not contestants[0].task and not _equal(problems, data.load_problems(one.task, texts)):
            raise UserError(
                f"{contestants[0].run} and {one.run} read the {split} problems in different tokens, so that they can "
                "not be compared: evaluate them one by one."
            )
    chosen = places(len(texts), num_problems)
    return jax.tree.map(lambda x: x[chosen], problems)


def places(size: int, num_problems: int) -> np.ndarray:
    """Which problems of a split are taken, in order; 0 takes all."""
    # Some splits are sorted by difficulty, so the first ones would not stand for all.
    return np.sort(np.random.default_rng(0).permutation(size)[: num_problems or size])


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def common_budgets(contestants: Sequence[Contestant], strategies: Sequence[str]) -> list[int]:
    possible = [plans.possible_budgets(one.task, one.search, strategies) for one in contestants]
    return list(max(possible, key=min))


def rows_of_before(path: str, about: dict[str, Any]) -> list[Row]:
    """The rows of a comparison on the same problems and seeds. Any other file there is moved aside, not lost."""
    if not os.path.exists(path):
        return []
    try:
        rows, content = report.read_json(path)
        if all(content.get(name) == about[name] for name in ("split", "num_problems", "seeds")):
            return rows
        why = f"is of other problems or seeds ({content.get('split')})"
    except UserError:
        why = "can not be read as results of this version"
    stem, number = path.removesuffix(".json"), 1
    while os.path.exists(f"{stem}.{number}.json"):
        number += 1
    os.rename(path, f"{stem}.{number}.json")
    print(f"{path} {why}: moved to {stem}.{number}.json.")
    return []


def run(contestants, planned, problems, options, about: dict[str, Any], output: str, known: list[Row]) -> list[Row]:
    """All rows, each printed and saved as soon as it is known; behind them those of before that were not asked for."""
    by_identity = {row.identity: row for row in known}
    say_forecast(contestants, planned, problems, options.seeds, by_identity)
    rows: list[Row] = []
    done = 0
    identities = [
        compare.identity(one, each[1]) for one, some in zip(contestants, planned, strict=True) for each in some
    ]
    missing = sum(identity not in by_identity for identity in identities)
    with Progress("row", total=missing, seconds_between_lines=0.0) as progress:
        for one, strategies in zip(contestants, planned, strict=True):
            for row in evaluate(one, problems, strategies, options.seeds, options.batch_size, by_identity):
                rows.append(row)
                new = {row.identity for row in rows}
                kept = [row for row in known if row.identity not in new]
                report.write_json(os.path.join(output, report.JSON), [*rows, *kept], about)
                if row.identity in by_identity:
                    continue
                done += 1
                named = " ".join(filter(None, [row.run, row.strategy, row.mode, row.knob]))
                progress.update(done, f"{named}: solved {row.rate.estimate:.3f} {row.rate}")
    return [*rows, *kept]


def say_forecast(contestants, planned, problems, seeds: int, known: Mapping[str, Row]) -> None:
    pairs = zip(contestants, planned, strict=True)
    open_ = [(one, [each for each in some if compare.identity(one, each[1]) not in known]) for one, some in pairs]
    rows = sum(len(some) for _, some in open_)
    told = [forecast(one, problems, some, seeds) for one, some in open_ if some]
    tokens, flops, seconds = (sum(getattr(one, name) for one in told) for name in ("tokens", "flops", "seconds"))
    print(
        f"{rows} rows to run, of {len(problems.index)} problems and {seeds} seed(s): at most {tokens:.3g} "
        f"tokens and {flops:.3g} FLOPs, about {duration(seconds)} on this device and what compilation takes."
    )


def show(rows: Sequence[Row], output: str, title: str, axis: str) -> None:
    console = make_console()
    print_table("Every row", report.table_rows(rows), console)
    for name, paired in report.difference_tables(rows).items():
        if paired:
            print_table(f"Paired differences of solve rates. {name}", paired, console)
    print_table(f"Solve rates at budgets of tokens: {title}", report.overview(rows), console)
    report.write_tables(os.path.join(output, report.TABLES), rows, f"Solve rates at budgets of tokens: {title}")
    report.plot(os.path.join(output, report.FIGURE), rows, title, axis)
    written = f"Written to {os.path.join(output, report.JSON)}, {report.TABLES} and {report.FIGURE} beside it."
    console.print(written, soft_wrap=True, markup=False)


if __name__ == "__main__":
    define_flags()
    run_main(main)
