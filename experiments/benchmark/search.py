"""How fast the search is: `python -m experiments.benchmark.search [--quick] [--output=FILE.json]`.

Run it alone on the machine. Each part runs in a process of its own, held to as many cores as its table says, and its
result is printed and written as soon as it is known. What is measured, and the goals on a CPU in float32:

1.  One search of 64 problems by a 3.4 M-parameter model, 6 candidates of exactly 16 tokens, a context of 40 tokens, on
    a task that never terminates: 60 expansions per core-second. Beside it a naive decode (no search, no cache that
    candidates share) of as many tokens, and the share of time outside the model.
2.  The same with 64 simulations: at most 10 % of the time outside the model.
3.  The same for 8 problems and 1,024 simulations: the last 32 cost at most 1.3 times simulations 16 to 48.
4.  An iteration of the Game of 24 on a CPU: self-play, learning, and what is left to the host.

Compiled programs are not taken from the persistent cache, and compilations are counted: none after the first call.
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import flags

from alphallm.config import run_main
from experiments.studies import commit

HERE = os.path.dirname(os.path.abspath(__file__))
GOAL_EXPANSIONS = 60.0
GOAL_RATIO = 1.3
PROBLEMS, CANDIDATES, STEP_TOKENS, PROMPT_TOKENS = 64, 6, 16, 8
SIMULATIONS = 16  # with 3 levels and 6 candidates, no simulation meets a subtree that is already known.


def define_flags() -> None:
    flags.DEFINE_bool("quick", False, "Few problems and simulations: to see that it runs, not how fast.")
    flags.DEFINE_string("output", os.path.join(HERE, "results.json"), "Where to write the results.")
    flags.DEFINE_list("parts", ["peak", "search", "tree", "growth", "game24"], "Which parts to run.")
    flags.DEFINE_string("child", "", "Internal: the part that this process measures.")
    flags.DEFINE_integer("cores", 0, "Internal: how many cores the part is held to.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    options = flags.FLAGS
    if options.child:
        return measure_part(options.child, options.cores, options.quick)
    all_cores = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {"machine": machine(), "quick": options.quick, "parts": {}}
    for part in options.parts:
        few = {"growth": (1,), "tree": (all_cores,)}  # Those that take minutes.
        cores = few.get(part, dict.fromkeys((1, all_cores)))
        rows = [run_part(part, n, options.quick) for n in cores]
        results["parts"][part] = rows
        SHOW[part](rows, results["parts"].get("peak", []))
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return None


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": names[0] if names else "", "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
        "commit": commit(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def run_part(part: str, cores: int, quick: bool) -> dict[str, Any]:
    """A part's result, measured in a process that may use `cores` cores, one device each."""
    held = sorted(os.sched_getaffinity(0))[:cores]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={cores}",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    command = [sys.executable, "-m", "experiments.benchmark.search", f"--child={part}", f"--cores={cores}"]
    process = subprocess.run(
        [*command, f"--quick={quick}"],
        env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, held),
    )  # fmt: skip
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.splitlines()[-1])


def measure_part(part: str, cores: int, quick: bool) -> None:
    from experiments.benchmark import measure

    result = {"cores": cores, **MEASURE[part](quick), "peak_memory": measure.peak_memory()}
    print(json.dumps(result))


def setting(quick: bool, levels: int = 3, num_simulations: int = SIMULATIONS):
    """Task, model and search of the benchmark."""
    from alphallm.models import ModelConfig
    from alphallm.search import SearchConfig
    from experiments.benchmark.synthetic import Endless, FixedLengthModel, Words

    task = Endless(Words(512), PROMPT_TOKENS, STEP_TOKENS, levels)
    shape = ModelConfig(num_layers=4, width=256, num_heads=8, num_kv_heads=4, head_dim=32, hidden_dim=800)
    if quick:
        shape = dataclasses.replace(shape, num_layers=2, width=64, hidden_dim=128)
    config = SearchConfig(
        num_simulations=num_simulations, num_candidates=CANDIDATES, max_considered=CANDIDATES, value_scale=0.1
    )
    return task, FixedLengthModel(shape, task), config


def measure_peak(quick: bool) -> dict[str, Any]:
    from experiments.benchmark import measure

    return {"flops": measure.matrix_peak(2 if quick else 7)}


def measure_search(
    quick: bool, levels: int = 3, num_simulations: int = SIMULATIONS, repeats: int = 5
) -> dict[str, Any]:
    """One search on all devices, what it spends beside the model, and a naive decode of as many tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from alphallm.search import search
    from alphallm.training import parallel
    from experiments.benchmark import measure, naive
    from experiments.benchmark.synthetic import StandIn

    task, model, config = setting(quick, levels, num_simulations)
    problems = parallel.shard(task.problems(8 if quick else PROBLEMS))
    params = model.init(jax.random.key(0))
    placed, repeats = parallel.replicate(params), 1 if quick else repeats

    def grow(model, config, params, problem, seed):
        """What a search tells, as sums: returning the tree would time its copy."""
        key_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(problem.length.shape[0]))
        yes = jnp.ones(problem.length.shape, bool)
        tree = search(model, task, config, params, problem, key_B, yes, yes)
        told = (tree.value_BN, tree.child_visits_BNK, tree.log_prob_BNK, tree.tokens_BNKL, tree.length_BNK)
        lengths_right = jnp.all(~tree.expanded_BN[..., None] | (tree.valid_BNK & (tree.length_BNK == STEP_TOKENS)))
        return jnp.sum(tree.expanded_BN), tree.tokens_generated_B.sum(), lengths_right, [jnp.sum(x) for x in told]

    def compiled(model, config):
        return parallel.pmap(functools.partial(grow, model, config))

    full, devices = compiled(model, config), jax.local_device_count()
    seeds = [parallel.replicate(np.int32(seed)) for seed in range(3)]
    arguments = (placed, problems, seeds[0])
    with measure.compilations() as first:
        began = time.perf_counter()
        expansions_D, tokens_D, right_D, _ = jax.block_until_ready(full(*arguments))
        first_call = time.perf_counter() - began
    if not np.all(np.asarray(right_D)):
        raise AssertionError(f"A candidate is not a valid step of {STEP_TOKENS} tokens.")
    with measure.compilations() as later:
        timing = measure.timed(full, *arguments, repeats=repeats)
        jax.block_until_ready([full(placed, problems, seed) for seed in seeds[1:]])
    half = dataclasses.replace(config, num_simulations=config.num_simulations // 2)
    half_timing = measure.timed(compiled(model, half), *arguments, repeats=repeats)
    beside = measure.timed(compiled(StandIn(model.config, task), config), *arguments, repeats=repeats)
    expansions = int(np.asarray(expansions_D).sum())
    rows = problems.length.size // devices
    if expansions != rows * devices * (config.num_simulations + 1):
        raise AssertionError(f"{expansions} expansions: not every simulation ran the model.")
    naive_decode = parallel.pmap(
        functools.partial(
            naive.decode, model, rows=rows * CANDIDATES, context=PROMPT_TOKENS + 2 * STEP_TOKENS, tokens=STEP_TOKENS
        )
    )
    plain = measure.timed(naive_decode, placed, seeds[0], repeats=repeats)
    # A search's tokens that run through the model: proposed, appended, and the prompts.
    appended = expansions * STEP_TOKENS - rows * devices * STEP_TOKENS
    run_tokens = int(np.asarray(tokens_D).sum()) + appended + rows * devices * PROMPT_TOKENS
    return {
        "parameters": model.num_params(), "flops_per_token": model.flops_per_token(),
        "problems": rows * devices, "simulations": config.num_simulations, "candidates": CANDIDATES,
        "expansions": expansions, "tokens_proposed": int(np.asarray(tokens_D).sum()), "tokens_run": run_tokens,
        "seconds": timing.seconds, "repeats": timing.repeats, "cpu_seconds": timing.cpu_seconds,
        "seconds_half": half_timing.seconds, "cpu_seconds_half": half_timing.cpu_seconds,
        "seconds_beside_model": beside.seconds, "cpu_seconds_beside_model": beside.cpu_seconds,
        "naive_expansions": rows * devices, "naive_seconds": plain.seconds, "naive_cpu_seconds": plain.cpu_seconds,
        "first_call_seconds": first_call, "compile_seconds": first.seconds,
        "compilations_first": first.number, "compilations_later": later.number,
    }  # fmt: skip


def measure_growth(quick: bool) -> dict[str, Any]:
    """Seconds of every simulation of one long search, by a clock that each simulation stops."""
    import jax
    import jax.numpy as jnp

    from alphallm.search import search
    from experiments.benchmark.synthetic import TimedModel

    simulations = 128 if quick else 1024
    # Five levels hold 6 + 36 + 216 + 1,296 expansions.
    task, model, config = setting(quick, levels=6, num_simulations=simulations)
    clock: list[float] = []
    model = TimedModel(model.config, task, lambda _: clock.append(time.perf_counter()))
    params = model.init(jax.random.key(0))
    problems = task.problems(2 if quick else 8)

    @jax.jit
    def run(params, problem, seed):
        key_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(problem.length.shape[0]))
        yes = jnp.ones(problem.length.shape, bool)
        tree = search(model, task, config, params, problem, key_B, yes, yes)
        told = (tree.value_BN, tree.child_visits_BNK, tree.tokens_BNKL)
        return jnp.sum(tree.expanded_BN), jnp.max(tree.depth_BN), [jnp.sum(x) for x in told]

    compiled = run.lower(params, problems, 0).compile()
    repeats = []
    for seed in range(1 if quick else 2):
        clock.clear()
        expansions, depth, _ = jax.block_until_ready(compiled(params, problems, seed))
        jax.effects_barrier()
        times = sorted(clock)
        each = [later - earlier for earlier, later in itertools.pairwise(times)]
        early, late = statistics.median(each[16:48]), statistics.median(each[-32:])
        every_256 = [statistics.median(each[i : i + 32]) for i in range(0, len(each) - 31, 128)]
        repeats.append({
            "early": early, "late": late, "ratio": late / early, "depth": int(depth), "seconds_along": every_256,
            "expansions": int(expansions), "timed_simulations": len(times),
        })  # fmt: skip
    return {"simulations": simulations, "problems": len(problems.length), "repeats": repeats}


def measure_game24(quick: bool) -> dict[str, Any]:
    """Iterations of configs/game24_cpu.py: the compiled parts alone, and the loop's ticks around them."""
    import jax
    import numpy as np

    from alphallm.config import apply_overrides, load_config
    from alphallm.training import parallel
    from alphallm.training.loop import Trainer
    from alphallm.training.steps import LEARN, SELF_PLAY, key_for
    from experiments.benchmark import measure

    config = load_config(os.path.join(HERE, "..", "..", "configs", "game24_cpu.py"))
    changes: dict[str, Any] = {"warm_start.data": "none"}
    if quick:
        changes |= {"training.problems_per_iteration": 8, "search.num_simulations": 4, "training.learner_steps": 1}
    config = apply_overrides(config, changes)
    trainer = Trainer(config)
    state = trainer.to_devices(trainer.initial_state())
    with measure.compilations() as first:
        began = time.perf_counter()
        state, _ = trainer.tick(state, 0)
        first_tick = time.perf_counter() - began
    ticks: list[float] = []
    metrics: dict[str, float] = {}
    with measure.compilations() as later:
        for tick in range(1, 2 if quick else 6):
            began = time.perf_counter()
            state, metrics = trainer.tick(state, tick)
            ticks.append(time.perf_counter() - began)
    problem = parallel.shard(trainer._batch(0))
    keys = [parallel.replicate_key(key_for(config, what, 0)) for what in (SELF_PLAY, LEARN)]
    play = functools.partial(trainer.steps.self_play, state.learner.params, state.replay, problem, trainer.lanes)
    played = measure.timed(play, keys[0], repeats=1 if quick else 3)
    rows, problem, _ = play(keys[0])
    learn_seconds, learner, stored = [], state.learner, state.replay
    for _ in range(1 if quick else 3):  # The state is donated: each call goes on from the one before.
        began = time.perf_counter()
        learner, stored, _ = jax.block_until_ready(
            trainer.steps.learn(learner, stored, rows, problem, trainer.lanes, keys[1])
        )
        learn_seconds.append(time.perf_counter() - began)
    problems = config.training.problems_per_iteration
    expanded = float(metrics["search/expanded"]) * problems
    tokens = float(metrics["search/tokens"]) * problems
    return {
        "parameters": trainer.model.num_params(), "flops_per_token": trainer.model.flops_per_token(),
        "problems": problems, "simulations": config.search.num_simulations,
        "tick_seconds": float(np.median(ticks)), "self_play_seconds": played.seconds,
        "self_play_cpu_seconds": played.cpu_seconds, "learn_seconds": statistics.median(learn_seconds),
        "expansions": expanded, "tokens_proposed": tokens,
        "tokens_run": tokens + expanded * trainer.task.max_step,
        "first_tick_seconds": first_tick, "compile_seconds": first.seconds,
        "compilations_first": first.number, "compilations_later": later.number,
    }  # fmt: skip


def show_peak(rows, peaks) -> None:
    from alphallm.display import print_table

    del peaks
    table = [
        {"cores": r["cores"], "GFLOP/s": r["flops"] / 1e9, "per core": r["flops"] / 1e9 / r["cores"]} for r in rows
    ]
    print_table("Matrix-product peak, float32", table)


def _peak(peaks, cores: int) -> float:
    return next((row["flops"] for row in peaks if row["cores"] == cores), float("nan"))


def show_search(rows, peaks) -> None:
    from alphallm.display import print_table

    speed, costs = [], []
    for r in rows:
        n, wall = r["cores"], r["seconds"]
        used = r["tokens_run"] * r["flops_per_token"]
        speed.append({
            "cores": n, "expansions a core-second": r["expansions"] / wall / n,
            "by CPU time": r["expansions"] / r["cpu_seconds"],
            "naive decode": r["naive_expansions"] / r["naive_seconds"] / n,
            "naive by CPU time": r["naive_expansions"] / r["naive_cpu_seconds"],
            "tokens/s proposed": r["tokens_proposed"] / wall, "tokens/s run": r["tokens_run"] / wall,
            "utilisation": used / wall / _peak(peaks, n),
        })  # fmt: skip
        half = r["simulations"] - r["simulations"] // 2
        outside = r["cpu_seconds_beside_model"] / r["cpu_seconds"]
        costs.append({
            "cores": n, "ms a simulation": 1e3 * (wall - r["seconds_half"]) / half, "in the model": 1 - outside,
            "tree and choice of tokens": outside, "peak MB": r["peak_memory"] / 2**20,
            "compile s": r["compile_seconds"], "first call s": r["first_call_seconds"],
            "compilations, first call": r["compilations_first"], "after it": r["compilations_later"],
        })  # fmt: skip
    r = rows[0]
    title = (
        f"{r['problems']} problems, {r['simulations']} simulations, {r['candidates']} candidates of {STEP_TOKENS} "
        f"tokens, {r['parameters'] / 1e6:.2f} M parameters (goal: {GOAL_EXPANSIONS:.0f} expansions a core-second)"
    )
    print_table(title, speed)
    print_table("What it costs", costs)


def show_growth(rows, peaks) -> None:
    from alphallm.display import print_table

    del peaks
    for r in rows:
        title = f"{r['problems']} problems, {r['simulations']} simulations, on one core (goal: a ratio of {GOAL_RATIO})"
        table = [
            {
                "repeat": i, "ms, simulations 16-48": 1e3 * one["early"], "ms, the last 32": 1e3 * one["late"],
                "ratio": one["ratio"], "expansions": one["expansions"], "depth": one["depth"],
            }
            for i, one in enumerate(r["repeats"])
        ]  # fmt: skip
        print_table(title, table)


def show_game24(rows, peaks) -> None:
    from alphallm.display import print_table

    table = []
    for r in rows:
        used = r["tokens_run"] * r["flops_per_token"] / r["self_play_seconds"]
        compiled = r["self_play_seconds"] + r["learn_seconds"]
        table.append({
            "cores": r["cores"], "iteration s": r["tick_seconds"], "self-play s": r["self_play_seconds"],
            "learning s": r["learn_seconds"], "host": max(0.0, 1 - compiled / r["tick_seconds"]),
            "expansions a core-second": r["expansions"] / r["self_play_seconds"] / r["cores"],
            "tokens/s proposed": r["tokens_proposed"] / r["self_play_seconds"],
            "utilisation": used / _peak(peaks, r["cores"]), "compile s": r["compile_seconds"],
            "compilations, first": r["compilations_first"], "after it": r["compilations_later"],
            "peak MB": r["peak_memory"] / 2**20,
        })  # fmt: skip
    r = rows[0]
    title = f"configs/game24_cpu.py, random weights: {r['problems']} problems x {r['simulations']} simulations"
    print_table(f"{title}, {r['parameters'] / 1e6:.2f} M parameters", table)


MEASURE: dict[str, Any] = {
    "peak": measure_peak,
    "search": measure_search,
    "tree": functools.partial(measure_search, levels=4, num_simulations=64, repeats=2),
    "growth": measure_growth,
    "game24": measure_game24,
}
SHOW = {"peak": show_peak, "search": show_search, "tree": show_search, "growth": show_growth, "game24": show_game24}


if __name__ == "__main__":
    define_flags()
    run_main(main)
