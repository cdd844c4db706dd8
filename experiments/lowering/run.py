"""Lowers the compiled functions of configs for TPU, GPU and CPU, none of which need be here.

python -m experiments.lowering.run --data=DATA [--config=FILE,FILE] [--config.FIELD=VALUE ...]

Warm start, self-play, learning and what evaluates them are exported with `jax.export` for each platform, from the
shapes of their arguments: no weights are made, so that a config of any size takes a minute. The device's own compiler
does not run: this finds what no compiler could take (a primitive without a rule for the platform, a call of the host, a
shape that is not fixed, a float64), and not what is too large or slow. For eight devices, say
XLA_FLAGS=--xla_force_host_platform_device_count=8. Without --config all of configs/ are lowered. Writes lowering.json
and lowering.md to --output, here by default.

DATA holds what a download would bring: gsm8k/ with GSM8K's train.jsonl and test.jsonl, which stand for the questions of
all tasks in words, and game24/ with 24.csv. Where the tokenizer of a pretrained model is missing, a byte-level BPE
trained on these questions takes its place, of the model's own vocabulary size: what changes is the content of tables,
and the longest token's bytes.

A function that calls the host (task.equality=math asks a grader) can not be exported and is listed as such; its config
is lowered with task.equality=integers too, which compares answers in the compiled function.
"""

import dataclasses
import json
import os
import pathlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, load_config, run_main
from alphallm.errors import UserError

HERE = pathlib.Path(__file__).resolve().parent
PLATFORMS = ("tpu", "cuda", "cpu")
VOCABULARY = 151_936  # rows of the embeddings of Qwen2.5 (up to 3 B) and Qwen3.
LOWERED, HOST = "lowered", "calls the host"
_HOST_PRIMITIVE = re.compile("callback|debug_print")
_DYNAMIC, _FLOAT64 = re.compile(r"tensor<[^>]*\?"), re.compile(r"[<x]f64\b")


def define_flags() -> None:
    flags.DEFINE_list("config", [], "The experiments: Python files with get_config(); by default all of configs/.")
    flags.DEFINE_list("platforms", list(PLATFORMS), "For what to lower.")
    flags.DEFINE_string("data", "", "The folder with gsm8k/ and game24/; without it they are downloaded.")
    flags.DEFINE_string("output", str(HERE), "Where to write lowering.json and lowering.md.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    unknown = [*arguments, *(name for name in options.platforms if name not in PLATFORMS)]
    if unknown or not options.platforms:
        given = ", ".join(unknown) or "platforms"
        raise UserError(f"Unknown {given}: give --platforms of {', '.join(PLATFORMS)}, and --config=FILE.")
    paths = options.config or sorted(map(str, HERE.parents[1].joinpath("configs").glob("*.py")))
    configs = with_graded_answers_compared(
        {pathlib.Path(path).stem: apply_overrides(load_config(path), overrides) for path in paths}
    )
    import jax

    from alphallm.display import print_table
    from alphallm.training.parallel import use_cores_as_devices
    from experiments.benchmark.search import machine

    use_cores_as_devices(1)
    here = machine() | {"jax": jax.__version__, "devices": jax.local_device_count(), "overrides": overrides}
    began, rows = time.perf_counter(), []
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            found = list(lowerings(name, with_stand_ins(config, options.data, folder), options.platforms))
        print_table(name, [dataclasses.asdict(row) for row in found])
        rows += found
        jax.clear_caches()
        about = here | {
            "seconds": time.perf_counter() - began,
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        write(pathlib.Path(options.output), about, rows)
    failed = [row for row in rows if row.result != LOWERED and not row.result.startswith(HOST)]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} did not lower: see the column `result`.")


def with_graded_answers_compared(configs: dict[str, Any]) -> dict[str, Any]:
    """The configs, and each one that asks a grader on the host also without: the rest of it can be lowered."""
    more = {
        f"{name}, task.equality=integers": apply_overrides(config, {"task.equality": "integers"})
        for name, config in configs.items()
        if getattr(config.task, "equality", "") == "math"
    }
    return configs | more


@dataclasses.dataclass(frozen=True)
class Lowering:
    """One function for one platform."""

    config: str
    function: str
    platform: str
    result: str  # LOWERED, or what is wrong in one line.
    megabytes: float | None = None  # of the exported program, its constants included.
    seconds: float | None = None  # for tracing, which only the first platform needs, and lowering.


def with_stand_ins(config: Any, data: str, folder: str) -> Any:
    """The config with data and a tokenizer (written to `folder`) that are here where it names others."""
    from alphallm.tasks import ArithmeticConfig, TextConfig
    from alphallm.tasks.text import tokenizer_of

    task = config.task
    if data and isinstance(task, ArithmeticConfig):
        task = dataclasses.replace(task, manual_dir=os.path.join(data, "game24"))
    if isinstance(task, TextConfig):
        if data:  # MATH's own files are not GSM8K's; as "jsonl" the task is the same.
            task = dataclasses.replace(task, name="jsonl", manual_dir=os.path.join(data, "gsm8k"))
        if task.tokenizer and not os.path.isdir(task.tokenizer):
            tokenizer_of(dataclasses.replace(task, tokenizer="")).save(folder)
            pathlib.Path(folder, "huggingface_config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
            task = dataclasses.replace(task, tokenizer=folder)
    # Weights to start from have the shapes of random ones.
    return dataclasses.replace(config, task=task, init_from="")


def lowerings(name: str, config: Any, platforms: Sequence[str]) -> Iterator[Lowering]:
    """Lowers each of the config's functions for each platform."""
    for function_name, (function, arguments) in compiled_functions(config).items():
        for platform in platforms:
            yield Lowering(name, function_name, platform, *lower(function, arguments, platform))


def compiled_functions(config: Any) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """What a run of the config compiles, with the shapes of the arguments. Nothing of the model's size is allocated."""
    import jax

    from alphallm.training.loop import Trainer
    from alphallm.training.signatures import signatures

    trainer = Trainer(config)
    state = jax.eval_shape(trainer.initial_state)
    return signatures(trainer, state) | evaluation_functions(trainer, state)


def evaluation_functions(trainer: Any, state: Any) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """The functions of the strategies that validation runs, on one device."""
    import jax
    import numpy as np

    from alphallm.evaluation import compare, strategies
    from alphallm.models import LanguageModel, lora
    from alphallm.training.loop import problem_rows
    from alphallm.training.validation import Validation

    config = trainer.config
    model = LanguageModel(lora.plain(config.model), trainer.task.vocabulary.size)
    rows = problem_rows(config, "validation")[: config.evaluation.num_problems]
    validation = Validation(model, trainer.task, config, rows)
    params = jax.eval_shape(lambda learner: lora.merge(learner.average_weights, config.model), state.learner)
    size = compare.BATCH_SIZE
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), validation.problems)
    programs = {strategies.program(strategy): strategy for strategy in validation.strategies.values()}
    found: dict[str, tuple[Callable, tuple[Any, ...]]] = {}
    for program, strategy in programs.items():
        function = compare._program(model, trainer.task, program, False, size)._function
        found[f"evaluate: {program.name}"] = (function, (params, batch, np.int32(0), strategies.switches(strategy)))
    found["evaluate: KL"] = (validation._kl, (params, params, validation.problems))
    return found


def lower(function: Callable, arguments: tuple[Any, ...], platform: str) -> tuple[str, float | None, float | None]:
    """How it went, the megabytes of the exported program and the seconds."""
    import jax
    from jax import export

    began = time.perf_counter()
    jitted = jax.jit(function)
    try:
        calls = host_calls(jitted.trace(*arguments).jaxpr.jaxpr)
        if calls:
            return f"{HOST}: {', '.join(sorted(calls))}", None, None
        exported = export.export(jitted, platforms=[platform])(*arguments)
    except Exception as error:  # Whatever keeps a function from being lowered is what is asked for.
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", None, None
    result = fault(exported) or LOWERED
    return result, len(exported.mlir_module_serialized) / 1e6, time.perf_counter() - began


def fault(exported: Any) -> str:
    """What an exported program has that none of ours should: shapes that are not fixed, float64; "" for nothing."""
    dimensions = [size for aval in (*exported.in_avals, *exported.out_avals) for size in aval.shape]
    text = exported.mlir_module()
    if any(not isinstance(size, int) for size in dimensions) or _DYNAMIC.search(text):
        return "a shape is not fixed"
    return "float64" if _FLOAT64.search(text) else ""


def host_calls(jaxpr: Any) -> set[str]:
    """The primitives of a jaxpr, and of those inside it, that call Python on the host."""
    found = set()
    for equation in jaxpr.eqns:
        if _HOST_PRIMITIVE.search(equation.primitive.name):
            found.add(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= host_calls(inner)
    return found


def write(folder: pathlib.Path, about: dict[str, Any], rows: list[Lowering]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / "lowering.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "lowering.md").write_text(markdown(rows))


def markdown(rows: list[Lowering]) -> str:
    """A table with a line for each function and a column for each platform: megabytes, or what is wrong."""
    platforms = list(dict.fromkeys(row.platform for row in rows))
    cells = {(row.config, row.function, row.platform): row for row in rows}
    lines = [["config", "function", *platforms, "seconds"], ["---"] * (len(platforms) + 3)]
    for config, function in dict.fromkeys((row.config, row.function) for row in rows):
        found = [cells[config, function, platform] for platform in platforms]
        sizes = [f"{row.megabytes:.2f} MB" if row.result == LOWERED else row.result for row in found]
        seconds = sum(row.seconds or 0.0 for row in found)
        lines.append([config, function, *sizes, f"{seconds:.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    define_flags()
    run_main(main, takes_overrides=True)
