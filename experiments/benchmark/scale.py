"""What an iteration costs as devices, simulations and problems grow: `python -m experiments.benchmark.scale`.

Run it alone on the machine; about ten minutes on two cores. For each setting, in a process of its own: seconds,
utilisation, memory and collective bytes of self-play and of learning, each beside what the compiled programs' own
analysis and the closed-form formulas (`formulas.py`) say. Then the programs of 0.5 B, 7 B and 70 B parameters, compiled
and not run, beside the formulas. A run that was interrupted goes on where it stopped; --output's file of another
setting is begun anew. Writes FILE.json and FILE.png, and the tables of docs/scaling.md if the file is the default one.

The devices are virtual: they share this machine's cores. So more of them should take as long, and what is seen is what
dividing a batch costs; how links behave is not.
"""

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
OUTPUT = os.path.join(HERE, "scale.json")
DEVICES, SIMULATIONS, PROBLEMS = (1, 2, 4, 8), (8, 16, 32), (8, 16, 32, 64)
BASE = (2, 16, 32)  # devices, simulations, problems: one of them differs at a time.
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "width": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "hidden_dim": 384,
}
VOCABULARY, CANDIDATES, PROMPT_TOKENS, STEP_TOKENS, STEPS = 512, 8, 8, 8, 4
LEARNER_STEPS, TREES_A_LANE = 2, 1
PARTS = {"self_play": "self-play", "learn": "learning"}


def define_flags() -> None:
    flags.DEFINE_string("output", OUTPUT, "Where to write the results; its figure lies beside it.")
    flags.DEFINE_list("devices", [str(n) for n in DEVICES], "Numbers of virtual devices.")
    flags.DEFINE_list("simulations", [str(n) for n in SIMULATIONS], "Numbers of simulations.")
    flags.DEFINE_list("problems", [str(n) for n in PROBLEMS], "Numbers of problems, over all devices.")
    flags.DEFINE_list("shapes", ["0.5 B", "7 B", "70 B"], "Models whose programs are compiled beside the formulas.")
    flags.DEFINE_integer("repeats", 3, "Timed calls of each, after one that is not.")
    flags.DEFINE_string("child", "", "Internal: what this process measures, as JSON.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    options = flags.FLAGS
    if options.child:
        return print(json.dumps(measure_one(json.loads(options.child), options.repeats)))
    axes = [[_number(name, text) for text in getattr(options, name)] for name in ("devices", "simulations", "problems")]
    from alphallm.display import Progress, print_table
    from experiments.benchmark import cost

    jobs = plan(axes, options.shapes)
    results = _continued(options.output, options.repeats)
    done = results["rows"]
    with Progress("measurement", total=len(jobs), done=sum(_key(job) in done for job in jobs)) as progress:
        for job in jobs:
            if _key(job) in done:
                continue
            done[_key(job)] = run(job, options.repeats)
            _write(options.output, results)
            print_table("", summary(job, results), progress.console)
            progress.update(sum(_key(job) in done for job in jobs), _key(job))
    for title, rows in {**measured_tables(results), "Compiled": shape_rows(results)}.items():
        print_table(title, rows)
    draw(results, os.path.splitext(options.output)[0] + ".png")
    if os.path.abspath(options.output) == OUTPUT:
        cost.update_page("measured", markdown(results))
    return None


def plan(axes: list[list[int]], shapes: list[str]) -> list[dict[str, Any]]:
    """What is to be measured: the peak on each number of devices, and settings that differ from BASE in one place."""
    from experiments.benchmark import cost

    settings: list[tuple[int, ...]] = [BASE]
    for place, values in enumerate(axes):
        settings += [(*BASE[:place], value, *BASE[place + 1 :]) for value in values]
    for devices, _, problems in settings:
        if problems % devices:
            raise UserError(f"{problems} problems do not divide by {devices} devices: give --problems that do.")
    unknown = [name for name in shapes if name not in cost.MODELS]
    if unknown:
        raise UserError(f"Unknown model {unknown[0]!r} in --shapes: give some of {', '.join(cost.MODELS)}.")
    settings = sorted(set(settings))
    jobs: list[dict[str, Any]] = [{"peak": devices} for devices in sorted({setting[0] for setting in settings})]
    jobs += [dict(zip(("devices", "simulations", "problems"), setting, strict=True)) for setting in settings]
    return jobs + [{"shape": name} for name in shapes]


def _number(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--{name} has {text!r}: give whole numbers of at least 1, with commas between them.")
    return int(text)


def _key(job: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in job.items())


def _continued(path: str, repeats: int) -> dict[str, Any]:
    """The results in a file if they are of this setting, machine and code; else none."""
    from experiments.benchmark.search import machine

    about = machine()
    setting = {
        "model": MODEL, "vocabulary": VOCABULARY, "candidates": CANDIDATES, "prompt": PROMPT_TOKENS,
        "step": STEP_TOKENS, "steps": STEPS, "learner_steps": LEARNER_STEPS, "trees_a_lane": TREES_A_LANE,
        "repeats": repeats,
    }  # fmt: skip
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        same = ("cpu", "cores", "commit")
        if found["setting"] == setting and all(found["machine"][name] == about[name] for name in same):
            return found
    return {"machine": about, "setting": setting, "rows": {}}


def _write(path: str, results: dict[str, Any]) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    os.replace(f"{path}.new", path)  # so that an interruption leaves a whole file.


def run(job: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What a process of its own measures, on as many virtual devices as the job says."""
    devices = job.get("devices", job.get("peak", 1))
    name = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{name}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        **os.environ, "XLA_FLAGS": f"{others} {name}={devices}".strip(), "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "experiments.benchmark.scale",
        f"--child={json.dumps(job)}",
        f"--repeats={repeats}",
    ]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.splitlines()[-1])


# In a process of its own


def measure_one(job: dict[str, Any], repeats: int) -> dict[str, Any]:
    from experiments.benchmark import measure

    if "peak" in job:
        return {"flops": measure.matrix_peak(repeats)}
    if "shape" in job:
        return compile_shape(job["shape"])
    return measure_setting(job["devices"], job["simulations"], job["problems"], repeats)


def setting(simulations: int, problems: int):
    """Config and task of the benchmark; the config's own task is not read."""
    from alphallm.models import ModelConfig
    from alphallm.search import SearchConfig
    from alphallm.training.config import Config, TrainingConfig, WarmStartConfig
    from alphallm.training.targets import TargetConfig
    from experiments.benchmark.synthetic import Endless, Words

    config = Config(
        model=ModelConfig(**MODEL),
        search=SearchConfig(num_simulations=simulations, num_candidates=CANDIDATES, max_considered=CANDIDATES),
        targets=TargetConfig(nodes_per_tree=4, candidates_per_node=CANDIDATES),
        warm_start=WarmStartConfig(data="none"),
        training=TrainingConfig(
            problems_per_iteration=problems, learner_steps=LEARNER_STEPS, trees_per_step=TREES_A_LANE * problems,
            replay_capacity=4, augment=False,
        ),
    )  # fmt: skip
    return config, Endless(Words(VOCABULARY), PROMPT_TOKENS, STEP_TOKENS, STEPS)


def measure_setting(devices: int, simulations: int, problems: int, repeats: int) -> dict[str, Any]:
    """Seconds and memory of both programs, beside what was predicted of them."""
    import jax
    import numpy as np

    from alphallm import memory
    from alphallm.training import learner, parallel, replay
    from alphallm.training.steps import learning_rate
    from experiments.benchmark import formulas, measure, programs

    config, task = setting(simulations, problems)
    made = programs.Programs(config, task)
    told = made.predicted()
    # On the host, where it stays: what compiling the initialisation takes is no iteration's.
    state = learner.init(config, made.model.init(jax.random.key(0)), learning_rate(config))
    state, empty = (
        jax.tree.map(np.asarray, state),
        jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made.state.replay),
    )
    gc.collect()
    before = memory.reset_peak()
    trained = parallel.replicate(state)
    stored = replay.Replay(
        rows=parallel.shard(empty.rows), problem=parallel.shard(empty.problem), added=parallel.replicate(empty.added)
    )
    key, lanes = parallel.replicate_key(jax.random.key(1)), parallel.shard(np.arange(problems, dtype=np.int32))
    arguments = (trained.weights, stored, parallel.shard(made.problem), lanes, key)
    rows, problem, metrics = made.self_play(*arguments)
    means = parallel.means(metrics)
    found = {name: means[name] for name in ("search/expanded", "search/tokens")}
    expected = {"search/expanded": simulations + 1.0, "search/tokens": (simulations + 1.0) * CANDIDATES * STEP_TOKENS}
    if found != expected:
        raise AssertionError(f"The search did {found}, and the formulas count {expected}.")
    played = measure.timed(made.self_play, *arguments, repeats=repeats)
    seconds = []
    for _ in range(repeats + 1):  # The state is donated: each call goes on from the one before.
        began = time.perf_counter()
        trained, stored, _ = jax.block_until_ready(made.learn(trained, stored, rows, problem, lanes, key))
        seconds.append(time.perf_counter() - began)
    told["self_play"] |= {"seconds": played.seconds, "repeats": played.repeats}
    told["learn"] |= {"seconds": float(np.median(seconds[1:])), "repeats": seconds[1:]}
    measured = (memory.peak() - before) / devices
    gradients = config.training.learner_steps * formulas.gradient_bytes(made.work)
    return {**told, "memory": {**made.memory(), "measured": measured}, "gradient_bytes": gradients}


def compile_shape(name: str) -> dict[str, Any]:
    """The programs of a large model for one device: compiled, and not run. In float32: the CPU widens bfloat16."""
    from alphallm.training.config import Config
    from configs import gsm8k_qwen2p5_0p5b
    from experiments.benchmark import cost, programs
    from experiments.benchmark.synthetic import Endless, Words

    config: Config = gsm8k_qwen2p5_0p5b.get_config()
    work = cost.example(name, "all")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(work.model, dtype="float32"),
        training=dataclasses.replace(config.training, augment=False),
    )
    made = programs.Programs(config, Endless(Words(work.vocabulary), work.prompt, work.step, work.steps))
    return {**made.predicted(), "memory": made.memory()}


# What is shown


def _settings(results: dict[str, Any]) -> list[tuple[int, int, int]]:
    found = [re.fullmatch(r"devices (\d+), simulations (\d+), problems (\d+)", key) for key in results["rows"]]
    return sorted((int(m[1]), int(m[2]), int(m[3])) for m in found if m)


def _row(results: dict[str, Any], setting: tuple[int, int, int]) -> dict[str, Any]:
    return results["rows"]["devices {}, simulations {}, problems {}".format(*setting)]


def _at_peak(results: dict[str, Any], setting: tuple[int, int, int], part: str) -> float:
    """Seconds that the formula's FLOPs of all devices take at the peak of the matrix products, measured here too."""
    return _row(results, setting)[part]["flops"] * setting[0] / results["rows"][f"peak {setting[0]}"]["flops"]


def measured_tables(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Title -> a line for each setting; what is of a device is of each of them."""
    seconds, flops, sizes, messages = [], [], [], []
    for setting in _settings(results):
        row, memory = _row(results, setting), _row(results, setting)["memory"]
        where: dict[str, Any] = dict(zip(("devices", "simulations", "problems"), setting, strict=True))
        time_of: dict[str, Any] = {}
        count_of: dict[str, Any] = {}
        for part, name in PARTS.items():
            ideal = _at_peak(results, setting, part)
            time_of |= {
                name: row[part]["seconds"], f"{name} at the peak": ideal,
                f"{name}, utilisation": ideal / row[part]["seconds"],
            }  # fmt: skip
            count_of |= {
                f"{name}: formula": row[part]["flops"] / 1e9,
                f"{name}: compiled": row[part]["compiled_flops"] / 1e9,
                f"{name}: XLA, loops once": row[part]["xla_flops_once"] / 1e9,
            }  # fmt: skip
        seconds.append(where | time_of)
        flops.append(where | count_of)
        most = max(memory["self_play"], memory["learn"]), max(memory["self_play_formula"], memory["learn_formula"])
        sizes.append(
            where | {
                "measured": memory["measured"] / 1e6, "compiled": (memory["kept"] + most[0]) / 1e6,
                "formula": (memory["kept_formula"] + most[1]) / 1e6,
            }
        )  # fmt: skip
        messages.append(
            where | {
                "self-play, bytes": row["self_play"]["collective_bytes"],
                "learning, MB: compiled": row["learn"]["collective_bytes"] / 1e6,
                "formula": row["gradient_bytes"] / 1e6, "all-reduces in learning": row["learn"]["collectives"],
            }
        )  # fmt: skip
    return {
        "Seconds of an iteration": seconds,
        "GFLOP of a device": flops,
        "Peak memory of a device, MB": sizes,
        "All-reduced by a device in an iteration": messages,
    }


def shape_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each program of a large model: what the formula says, and the compiled program."""
    table: list[dict[str, Any]] = []
    for key, row in results["rows"].items():
        if key.startswith("shape "):
            for part, name in PARTS.items():
                table.append({
                    "model": key.removeprefix("shape "), "program": name,
                    "PFLOP: formula": row[part]["flops"] / 1e15, "PFLOP: compiled": row[part]["compiled_flops"] / 1e15,
                    "PFLOP: XLA, loops once": row[part]["xla_flops_once"] / 1e15,
                    "kept, GiB: formula": row["memory"]["kept_formula"] / 2**30,
                    "kept: compiled": row["memory"]["kept"] / 2**30,
                    "within it, GiB: formula": row["memory"][f"{part}_formula"] / 2**30,
                    "within it: compiled": row["memory"][part] / 2**30,
                })  # fmt: skip
    return table


def summary(job: dict[str, Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    """What was just measured, in a line or two."""
    if "peak" in job:
        flops = results["rows"][_key(job)]["flops"]
        return [{"devices": job["peak"], "peak of matrix products, GFLOP/s": flops / 1e9}]
    if "shape" in job:
        return [line for line in shape_rows(results) if line["model"] == job["shape"]]
    lines = measured_tables(results)["Seconds of an iteration"]
    return [line for line in lines if all(line[name] == value for name, value in job.items())]


def markdown(results: dict[str, Any] | None) -> str:
    """The measured part of docs/scaling.md."""
    if not results:
        return "Not recorded yet: `python -m experiments.benchmark.scale`."
    from alphallm.display import cell
    from experiments.benchmark import cost

    about, shape = results["machine"], results["setting"]
    parts = [
        f"`python -m experiments.benchmark.scale` at {about['commit']}, {about['date']}, {about['cores']} cores of "
        f"{about['cpu']}, a load of {about['load_before']:.1f} before it. The model has "
        f"{shape['model']['num_layers']} layers of width {shape['model']['width']}, K = {shape['candidates']}, "
        f"L = {shape['step']}, P = {shape['prompt']}, D = {shape['steps']}; medians of {shape['repeats']} calls.",
    ]
    parts.append(
        "![Measured and predicted along devices, simulations and problems](../experiments/benchmark/scale.png)"
    )
    tables = {**measured_tables(results), "One device's programs of large models, compiled": shape_rows(results)}
    for title, rows in tables.items():
        if rows:
            lines = [[cell(value) for value in row.values()] for row in rows]
            parts.append(cost.markdown_table(f"**{title}**", list(rows[0]), lines))
    return "\n\n".join(parts)


def draw(results: dict[str, Any], path: str) -> None:
    """Seconds, utilisation, memory and collective bytes along each axis; what is predicted is dashed or dotted."""
    from matplotlib.figure import Figure

    seconds, _, sizes, messages = measured_tables(results).values()
    shown = (
        ("seconds", seconds, {"self-play": "C0-", "self-play at the peak": "C0--", "learning": "C1-",
                              "learning at the peak": "C1--"}),
        ("utilisation", seconds, {"self-play, utilisation": "C0-", "learning, utilisation": "C1-"}),
        ("memory of a device, MB", sizes, {"measured": "C2-", "compiled": "C2--", "formula": "C2:"}),
        ("all-reduced by a device, MB", messages, {"learning, MB: compiled": "C3-", "formula": "C3--"}),
    )  # fmt: skip
    names = ("devices", "simulations", "problems")
    figure = Figure(figsize=(10, 11), layout="constrained")
    grid = figure.subplots(len(shown), len(names), sharex="col", sharey="row")
    for (label, rows, lines), line_of_axes in zip(shown, grid, strict=True):
        top = max((float(row[name]) for row in rows for name in lines), default=1.0)
        for column, axes in enumerate(line_of_axes):
            others = [(name, BASE[i]) for i, name in enumerate(names) if i != column]
            chosen = [row for row in rows if all(row[name] == value for name, value in others)]
            places = [row[names[column]] for row in chosen]
            for name, style in lines.items():
                values = [row[name] for row in chosen]
                axes.plot(places, values, color=style[:2], linestyle=style[2:], marker="o", markersize=4, label=name)
            axes.set(xscale="log", ylim=(0, 1.1 * top))
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            grid[0][column].set_title(", ".join(f"{value} {name}" for name, value in others), fontsize="medium")
            grid[-1][column].set_xlabel(names[column])
        line_of_axes[0].set_ylabel(label)
        line_of_axes[-1].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    define_flags()
    run_main(main)
