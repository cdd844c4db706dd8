"""Self-play beside what the device can do, in one command: `python -m experiments.benchmark.gpu [--output=FILE.json]`.

Needs a GPU; with --tiny the same path runs on a CPU in small sizes, to see that it works. Run it alone on the device.
Nobody has yet, so how long it takes is not known: --minutes ends it, and what is left out is said to be. Each part runs
in a process of its own, since XLA reads its options once, and what is known is written after each:

1.  `ceilings`: the best rate of bfloat16 matrix products, and of reading and copying memory. All else is held to these.
2.  `25m` and `0.5b`: models with random bfloat16 weights (the second of Qwen2.5-0.5B's shape), 64 problems x 8
    candidates of exactly 32 tokens after a prompt of 128, on a task that never ends (`synthetic.py`). The decode loop
    alone, a whole self-play, and the same search without the model's layers. A profile of the decode loop is written
    beside the output (docs/profiling.md says how to read it); its largest kernels, its idle share and how often it asks
    the host are printed.
3.  `attention`: this library's attention beside `jax.nn.dot_product_attention`, XLA's and cuDNN's, forward and with the
    gradient.
4.  Both models again with XLA options: CUDA graphs that hold whole loops, no CUDA graphs, matrix products by cuBLAS
    alone.

The floor of a call of the model is the larger of two times: its bytes (all weights once, and the cached keys and values
that are real) over the memory's rate, and its FLOPs over the matrix products' rate. The goal is 60 % of the floor's
speed in the decode loop.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
GOAL = 0.6
GRAPHS = "--xla_gpu_enable_command_buffer="
OPTIONS = {
    "": "",
    "loops in CUDA graphs": f"{GRAPHS}FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE",
    "no CUDA graphs": GRAPHS,
    "no Triton products": "--xla_gpu_enable_triton_gemm=false",
}
# (part, XLA option): what matters most comes first.
PARTS = [("ceilings", ""), ("25m", ""), ("0.5b", ""), ("attention", "")]
PARTS += [(size, option) for size in ("0.5b", "25m") for option in OPTIONS if option]
TINY_PARTS = PARTS[:5]


def define_flags() -> None:
    flags.DEFINE_bool("tiny", False, "Small sizes, on any device: to see that it runs, not how fast.")
    flags.DEFINE_float("minutes", 15.0, "No part begins after so many, and the one that runs is ended.")
    flags.DEFINE_string("output", "", "The results; profiles go beside it. gpu.json here by default, none with --tiny.")
    flags.DEFINE_string("child", "", "Internal: the part that this process measures.")
    flags.DEFINE_string(
        "profile", "", "Internal: where it puts its profile, without the end of the name; '' takes none."
    )


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del overrides
    options = flags.FLAGS
    if arguments:
        raise UserError(f"{arguments[0]!r} is not an option: give --output=FILE.json, --minutes=NUMBER or --tiny.")
    if options.child:
        print(json.dumps(measure_part(options.child, options.tiny, options.profile)))
        return
    from experiments.benchmark.search import machine

    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {"machine": machine(), "tiny": options.tiny, "parts": []}
    with tempfile.TemporaryDirectory() as folder:
        output = options.output or os.path.join(folder if options.tiny else HERE, "gpu.json")
        for part, option in TINY_PARTS if options.tiny else PARTS:
            left = end - time.monotonic()
            stem = "" if option else f"{os.path.splitext(output)[0]}_{part}"
            found = run_part(part, option, options.tiny, left, stem) if left > 0 else {"error": "left out: no time"}
            results["parts"].append({"part": part, "option": option, "flags": OPTIONS[option], **found})
            show(results["parts"])
            with open(output, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)


def run_part(part: str, option: str, tiny: bool, seconds: float, profile: str) -> dict[str, Any]:
    """A part's result, from a process of its own; or {"error": what it said last}."""
    environment = {
        **os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {OPTIONS[option]}".strip(),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.benchmark.gpu", f"--child={part}", f"--tiny={tiny}"]
    try:
        process = subprocess.run(
            [*command, f"--profile={profile}"], env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"ended after {seconds:.0f} s: no time"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    said = [line for line in process.stderr.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
    if part == "ceilings":  # All else is held to these.
        sys.exit(said[-1])
    # XLA's own crashes are written above a stack trace.
    return {"error": next((line for line in said if re.match("F[0-9]{4} ", line)), said[-1])[:300]}


def measure_part(part: str, tiny: bool, profile: str) -> dict[str, Any]:
    import jax

    if jax.default_backend() != "gpu" and not tiny:
        raise UserError(
            f"JAX finds no GPU here, only {jax.devices()[0].device_kind!r}: run this where there is one, with the "
            "project's extra [cuda] installed, or give --tiny to see that it works."
        )
    if part == "ceilings":
        return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, **ceilings(tiny)}
    if part == "attention":
        return {"rows": attention(tiny)}
    return measure_model(setting(part, tiny), 1 if tiny else 5, profile)


# Ceilings


def ceilings(tiny: bool) -> dict[str, float]:
    """FLOP/s of bfloat16 products, and bytes/s of memory, each the best of a few sizes."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmark import measure

    products, memory, repeats = ((256, 512), 2**22, 2) if tiny else ((4096, 8192, 16384), 2**30, 7)
    flops = 0.0
    for size in products:
        # Random: a device that runs at its power limit multiplies zeros faster.
        x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
        took = measure.timed(jax.jit(lambda a: a @ a), x, repeats=repeats)
        flops = max(flops, 2 * size**3 / min(took.repeats))
    x = jax.random.normal(jax.random.key(0), (memory,), jnp.bfloat16)
    copied = measure.timed(jax.jit(lambda a: a + 1), x, repeats=repeats)
    read = measure.timed(jax.jit(lambda a: jnp.max(a)), x, repeats=repeats)
    copy_rate, read_rate = 2 * x.nbytes / min(copied.repeats), x.nbytes / min(read.repeats)
    return {"flops": flops, "copy_rate": copy_rate, "read_rate": read_rate, "bytes_a_second": max(copy_rate, read_rate)}


# The models


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A model and the search that it is timed in."""

    task: Any
    model: Any
    search: Any
    problems: int  # B


def setting(name: str, tiny: bool) -> Setting:
    from alphallm.config import load_config
    from alphallm.models import LoraConfig, ModelConfig
    from alphallm.search import SearchConfig
    from experiments.benchmark.synthetic import Endless, FixedLengthModel, Words

    shape = ModelConfig(num_layers=8, width=512, num_heads=8, num_kv_heads=4, head_dim=64, hidden_dim=1408)
    vocabulary = 4096
    if name == "0.5b":
        shape = load_config(os.path.join(HERE, "..", "..", "configs", "gsm8k_qwen2p5_0p5b.py")).model
        vocabulary = 151_936
    problems, candidates, prompt, step, steps, simulations = (4, 4, 8, 4, 3, 4) if tiny else (64, 8, 128, 32, 4, 16)
    if tiny:
        shape = dataclasses.replace(shape, num_layers=2, width=64, hidden_dim=128)
        vocabulary = 512
    shape = dataclasses.replace(shape, dtype="bfloat16", lora=LoraConfig())
    task = Endless(Words(vocabulary), max_prompt=prompt, max_step=step, max_steps=steps)
    search = SearchConfig(num_simulations=simulations, num_candidates=candidates, max_considered=candidates)
    return Setting(task, FixedLengthModel(shape, task), search, problems)


def measure_model(given: Setting, repeats: int, profile: str) -> dict[str, Any]:
    """Seconds of the decode loop and of self-play, and the work in them."""
    import jax
    import jax.numpy as jnp

    from alphallm import decode
    from experiments.benchmark import measure, profiles
    from experiments.benchmark.synthetic import StandIn

    task, model, problems = given.task, given.model, given.task.problems(given.problems)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    key_B = jax.random.split(jax.random.key(1), given.problems)
    prefix = jax.jit(functools.partial(decode.prefill, model))(params, problems)
    loop = jax.jit(functools.partial(decode_loop, given)).lower(params, prefix, key_B).compile()
    if not bool(jnp.all(loop(params, prefix, key_B)[0] == task.max_step)):
        raise AssertionError(f"A candidate has other than {task.max_step} tokens.")
    decoding = measure.timed(loop, params, prefix, key_B, repeats=repeats)
    with measure.compilations() as compilations:
        playing = jax.jit(functools.partial(self_play, given, model)).lower(params, problems, key_B).compile()
    told = {name: float(total / count) for name, (total, count) in playing(params, problems, key_B)[0].items()}
    if told["search/expanded"] != given.search.num_simulations + 1:
        raise AssertionError(f"{told['search/expanded']} expansions a tree: not every simulation ran the model.")
    played = measure.timed(playing, params, problems, key_B, repeats=repeats)
    calls = work(given, params, told["search/mean_depth"])
    found = {
        "parameters": model.num_params(), "problems": given.problems, "candidates": given.search.num_candidates,
        "simulations": given.search.num_simulations, "prompt": task.max_prompt, "step": task.max_step,
        "decode_seconds": decoding.seconds, "decode_repeats": decoding.repeats, "decode_calls": task.max_step,
        "self_play_seconds": played.seconds, "self_play_repeats": played.repeats,
        "tokens": told["search/tokens"] * given.problems, "compile_seconds": compilations.seconds,
        "peak_memory": measure.peak_memory(),
        "calls": {name: dataclasses.asdict(call) for name, call in calls.items()},
    }  # fmt: skip
    if not profile:
        return found
    stand_in = jax.jit(functools.partial(self_play, given, StandIn(model.config, task)))
    beside = measure.timed(stand_in, params, problems, key_B, repeats=repeats)
    read = profiles.take(loop, (params, prefix, key_B), profile)
    return {**found, "beside_model_seconds": beside.seconds, "profile": read}


def decode_loop(given: Setting, params, prefix, key_B):
    """One node's candidates for every problem: their lengths, and sums that need all the rest."""
    import jax.numpy as jnp

    from alphallm import decode

    found = decode.gumbel_top_k(
        given.model, params, prefix, key_B, num=given.search.num_candidates, max_length=given.task.max_step,
        step_end_SV=given.task.vocabulary.step_end_SV, pad=given.task.vocabulary.pad,
    )  # fmt: skip
    return found.length_BK, jnp.sum(found.tokens_BKL), jnp.sum(found.log_prob_BK), jnp.sum(found.value_BK)


def self_play(given: Setting, model, params, problems, key_B):
    """The sums of the metrics, and of the rows: returning them would time their copy."""
    import jax
    import jax.numpy as jnp

    from alphallm.training import actor
    from alphallm.training.config import Config

    rows, metrics = actor.self_play(model, given.task, Config(search=given.search), params, problems, key_B)
    return metrics, [jnp.sum(leaf) for leaf in jax.tree.leaves(rows)]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the model: what it has to do at least."""

    flops: float
    bytes: float
    times: int  # in one self-play.


def work(given: Setting, params, mean_depth: float) -> dict[str, Call]:
    """The calls of the model in one self-play. Of cached positions those that are real count, and no activations."""
    import jax

    model, task, config = given.model, given.task, given.model.config
    step, nodes, num = task.max_step, given.search.num_simulations + 1, given.search.num_candidates
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2  # bytes of a position, bfloat16.
    attending = 4 * config.num_layers * config.num_heads * config.head_dim  # FLOPs of a pair of positions.
    head = 2 * model.vocabulary_size * config.width  # FLOPs of one position's logits.

    def call(new: int, seen: float, logits: int, read: float, times: int) -> Call:
        """Of `new` positions a problem that attend to `seen` each, logits of some, and `read` cached positions."""
        flops = new * (model.flops_per_token() - head + attending * seen) + logits * head
        return Call(given.problems * flops, weights + given.problems * read * cached, times)

    prompt, own = task.max_prompt, (step + 1) / 2  # of a step, what is written so far: the mean over its tokens.
    at_node = prompt + mean_depth * step
    at_parent = prompt + (mean_depth * nodes / (nodes - 1) - 1) * step  # of the nodes that have one.
    return {
        "prefill": call(prompt, (prompt + 1) / 2, 1, 0, 1),
        "append": call(step, at_parent + own, 1, at_parent, nodes - 1),
        "token": call(num, at_node + own, num, at_node + num * own, nodes * step),
        # Of the decode loop that is timed alone.
        "token after the prompt": call(num, prompt + own, num, prompt + num * own, 0),
    }


# Attention


def attention(tiny: bool) -> list[dict[str, Any]]:
    """Seconds of one layer's attention in bfloat16, of 14 query heads over 2 key-value heads of 64 channels."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmark import measure

    heads, groups, channels = 14, 2, 64
    # (problems, queries, keys): a batch of worked solutions, and a node's candidates before its prefix.
    shapes = {"learning": (2, 16, 16), "decoding": (2, 4, 24)}
    if not tiny:
        shapes = {"learning": (16, 512, 512), "decoding": (64, 8, 224)}
    rows = []
    for use, (b, x, s) in shapes.items():
        keys = jax.random.split(jax.random.key(0), 3)
        q = jax.random.normal(keys[0], (b, x, heads, channels), jnp.bfloat16)
        k, v = (jax.random.normal(key, (b, s, groups, channels), jnp.bfloat16) for key in keys[1:])
        mask = jnp.broadcast_to(jnp.arange(x)[:, None] + (s - x) >= jnp.arange(s)[None], (b, x, s))
        row: dict[str, Any] = {"use": use, "problems": b, "queries": x, "keys": s}
        for name, function in implementations().items():
            forward = jax.jit(functools.partial(_repeated, function))
            gradient = jax.jit(
                jax.grad(lambda *a, f=function: jnp.sum(_repeated(f, *a).astype(jnp.float32)), (0, 1, 2))
            )
            for what, compiled in {"": forward, ", gradient": gradient}.items():
                try:
                    row[f"{name}{what} ms"] = 1e3 * measure.timed(compiled, q, k, v, mask, repeats=3).seconds / _LAYERS
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    row[f"{name}{what} ms"] = " ".join(str(error).split())[:60]
        rows.append(row)
    return rows


_LAYERS = 24  # one after the other, so that a call is long beside its launch.


def _repeated(function: Callable, q, k, v, mask):
    import jax

    return jax.lax.scan(lambda q, _: (function(q, k, v, mask).astype(q.dtype), None), q, length=_LAYERS)[0]


def implementations() -> dict[str, Callable]:
    """(queries [B, X, heads, C], keys, values [B, S, groups, C], mask [B, X, S]) -> [B, X, heads, C]."""
    import jax
    import jax.numpy as jnp

    from alphallm.models import transformer

    def ours(q, k, v, mask):
        b, x, heads, c = q.shape
        groups = k.shape[2]
        q_BGHXC = q.reshape(b, x, groups, heads // groups, c).transpose(0, 2, 3, 1, 4) * c**-0.5
        scores = transformer._scores(q_BGHXC, k.swapaxes(1, 2)) + jnp.where(mask[:, None, None], 0.0, -1e30)
        weights = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(v.dtype)
        return transformer._weighted_sum(weights, v.swapaxes(1, 2)).transpose(0, 3, 1, 2, 4).reshape(q.shape)

    def theirs(implementation):
        return lambda q, k, v, mask: jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], implementation=implementation
        )

    return {"ours": ours, "XLA": theirs("xla"), "cuDNN": theirs("cudnn")}


# What is shown


def floor(call: dict[str, float], device: dict[str, float]) -> float:
    """Seconds that a call takes at least."""
    return max(call["flops"] / device["flops"], call["bytes"] / device["bytes_a_second"])


def show(parts: list[dict[str, Any]]) -> None:
    """Prints the newest part."""
    from alphallm.display import print_table
    from experiments.benchmark import profiles

    newest, device = parts[-1], parts[0]
    name = f"{newest['part']}, {newest['option']}" if newest["option"] else newest["part"]
    if "error" in newest:
        print(f"{name}: {newest['error']}", flush=True)
    elif newest["part"] == "ceilings":
        print(
            f"{newest['device']}, jax {newest['jax']}: {newest['flops'] / 1e12:.4g} TFLOP/s in bfloat16 products, ",
            end="",
        )
        print(f"memory copied at {newest['copy_rate'] / 1e9:.4g} GB/s, read at {newest['read_rate'] / 1e9:.4g} GB/s.")
    elif newest["part"] == "attention":
        print_table("Attention of a layer", newest["rows"])
    else:
        print_table(f"{name}: {newest['parameters'] / 1e6:.3g} M parameters", utilisation(newest, device))
        if newest.get("profile"):
            profiles.show("The decode loop", newest["profile"])


def utilisation(row: dict[str, Any], device: dict[str, float]) -> list[dict[str, object]]:
    """The decode loop's token, and the whole of self-play, beside the device's rates and their floor."""
    calls = row["calls"]
    token, step = calls["token after the prompt"], row["step"]
    parts = {
        f"a token of the decode loop (goal: {GOAL:.0%} of the floor's speed)": (
            row["decode_seconds"] / step, [(token, 1)], row["problems"] * row["candidates"],
        ),
        "self-play": (row["self_play_seconds"], [(call, call["times"]) for call in calls.values()], row["tokens"]),
    }  # fmt: skip
    table: list[dict[str, object]] = []
    for what, (seconds, some, tokens) in parts.items():
        flops, moved = (sum(call[key] * times for call, times in some) for key in ("flops", "bytes"))
        least = sum(floor(call, device) * times for call, times in some)
        table.append({
            "what": what, "ms": 1e3 * seconds, "floor ms": 1e3 * least, "of the floor's speed": least / seconds,
            "of the matrix peak": flops / device["flops"] / seconds,
            "of the memory's rate": moved / device["bytes_a_second"] / seconds, "tokens/s": tokens / seconds,
        })  # fmt: skip
    if "beside_model_seconds" in row:
        table.append({"what": "self-play without the model's layers", "ms": 1e3 * row["beside_model_seconds"]})
    return table


if __name__ == "__main__":
    define_flags()
    run_main(main)
