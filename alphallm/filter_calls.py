"""Keeps the calculator calls that help: `python -m alphallm.filter_calls --workdir=runs/x --output=data/filtered`.

Toolformer's filter, as a step that makes data: reads the training split of the task of a run (or an export) in words,
and writes train.jsonl, with only those annotations that lower the loss of what follows by --threshold nats, and
test.jsonl. The folder is then a manual_dir of the task "jsonl" (fields question and answer).
"""

import json
import os
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, run_main
from alphallm.errors import UserError


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_string("workdir", "", "The folder of a run or of exported weights, whose task has a calculator.")
    flags.DEFINE_string("output", "", "The folder to write.")
    flags.DEFINE_string(
        "manual_dir", "", "The folder with train.jsonl and test.jsonl; else the run's own, or a download."
    )
    flags.DEFINE_float("threshold", 1.0, "How much a call must lower the loss, in nats (Toolformer's tau_f).")
    flags.DEFINE_integer("num_problems", 0, "How many of the training problems; 0 takes all of them.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides or not options.workdir or not options.output:
        raise UserError("Give --workdir=FOLDER, of a run or of exported weights, and --output=FOLDER.")
    # They take seconds to import, which a wrong option need not wait for.
    from alphallm.display import print_table
    from alphallm.models import LanguageModel
    from alphallm.tasks import TextTask, data, make_task
    from alphallm.training.calls import calls_of, without_useless
    from alphallm.training.loop import load_params

    config, params = load_params(options.workdir)
    if options.manual_dir:
        config = apply_overrides(config, {"task.manual_dir": options.manual_dir})
    task = make_task(config.task)
    if not isinstance(task, TextTask) or task.tool is None:
        raise UserError(f"The task of {options.workdir!r} has no calculator: train it with task.calculator=true.")
    model = LanguageModel(config.model, task.vocabulary.size)
    rows = data.load_split(config.task, "train")
    rows = rows[: options.num_problems or len(rows)]
    measured = calls_of(model, params, task, rows)
    kept = [without_useless(row, calls, options.threshold) for row, calls in zip(rows, measured, strict=True)]
    _write(options.output, "train", kept)
    _write(options.output, "test", data.load_split(config.task, "test"))
    calls = sorted((call.gain, row.solution[call.start : call.end]) for row, some in zip(rows, measured, strict=True)
                   for call in some)  # fmt: skip
    shown: list[dict[str, Any]] = [{"call": text, "gain": gain} for gain, text in [*calls[:3], *calls[-3:]]]
    print_table("The calls that help least and most, in nats", shown)
    number = sum(gain >= options.threshold for gain, _ in calls)
    print(f"{options.output}: {number} of {len(calls)} calls in {len(rows)} solutions are kept.")


def _write(folder: str, name: str, rows: Any) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{name}.jsonl"), "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"question": row.question, "answer": row.solution}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    define_flags()
    run_main(main)
