"""The tables of docs/scaling.md: `python -m experiments.benchmark.cost [--write]`.

What an iteration of 0.5 B, 7 B and 70 B parameters needs on 1, 8, 256 and 4,096 chips, from the formulas beside this
file and from published peaks: what fits, and the least time that compute, memory and links leave. No time here was
measured. --write puts the tables into the page, where tests/test_cost.py wants them as they are printed.
"""

import dataclasses
import pathlib
import re
import types
from collections.abc import Sequence

from absl import flags

from alphallm import memory
from alphallm.config import run_main
from alphallm.models import LoraConfig, ModelConfig
from alphallm.tasks import TextConfig
from configs import gsm8k_qwen2p5_0p5b
from experiments.benchmark import floors, formulas
from experiments.benchmark.floors import CHIPS
from experiments.benchmark.formulas import Work

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"
CHIP_COUNTS = (1, 8, 256, 4096)


# name -> (shape, vocabulary), as the models' config.json have them.
MODELS = {
    "0.5 B": (gsm8k_qwen2p5_0p5b.get_config().model, 151_936),
    "7 B": (
        ModelConfig(
            num_layers=28, width=3584, num_heads=28, num_kv_heads=4, head_dim=128, hidden_dim=18_944,
            attention_bias=True, qk_norm=False, tied_embeddings=False, dtype="bfloat16",
        ),
        152_064,
    ),
    "70 B": (
        ModelConfig(
            num_layers=80, width=8192, num_heads=64, num_kv_heads=8, head_dim=128, hidden_dim=28_672, qk_norm=False,
            tied_embeddings=False, dtype="bfloat16",
        ),
        128_256,
    ),
}  # fmt: skip
TRAINED = {"all": 0, "LoRA": 16}  # rank


def define_flags() -> None:
    flags.DEFINE_bool("write", False, "Put the tables into docs/scaling.md.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    print(tables())
    if flags.FLAGS.write:
        update_page("costs", tables())


def example(name: str, trained: str) -> Work:
    """One chip's share of an iteration of configs/gsm8k_qwen2p5_0p5b.py, with another model in the place of its own."""
    config = gsm8k_qwen2p5_0p5b.get_config()
    shape, vocabulary = MODELS[name]
    model = dataclasses.replace(shape, lora=LoraConfig(rank=TRAINED[trained]))

    task = config.task
    assert isinstance(task, TextConfig)
    sizes = types.SimpleNamespace(
        max_prompt=task.max_prompt_tokens, max_step=task.max_step_tokens, max_steps=task.max_steps
    )
    return formulas.work_of(dataclasses.replace(config, model=model), sizes, vocabulary)


# The page


def tables() -> str:
    parts = (iteration_table(), memory_table(), replica_table(), sharded_table())
    return "\n\n".join(parts)


def iteration_table() -> str:
    rows = []
    for name in MODELS:
        for trained in TRAINED:
            work = example(name, trained)
            passes = formulas.decode_passes(work)
            weights = passes * formulas.weight_bytes(work)
            cached = sum(times * size for times, _, size in list(floors.phases(work))[2:]) - weights
            rows.append([
                name, trained, f"{formulas.parameters(work.model, work.vocabulary) / 1e9:.3f}",
                f"{formulas.trained(work.model, work.vocabulary) / 1e9:.3f}",
                f"{formulas.token_kv_bytes(work) / 1e3:.1f}", _number(formulas.self_play_flops(work) / 1e15),
                _number(formulas.learn_flops(work) / 1e15), f"{passes:,}", _number(weights / 1e12),
                _number(cached / 1e12), _number(formulas.gradient_bytes(work) / 1e9),
            ])  # fmt: skip
    titles = [
        "model", "trained", "parameters, 10⁹", "trained, 10⁹", "keys and values of a token, KB", "self-play, PFLOP",
        "learning, PFLOP", "passes to decode", "weights they read, TB", "keys and values they read, TB",
        "all-reduced an optimizer step, GB",
    ]  # fmt: skip
    work = example("0.5 B", "all")
    caption = (
        f"**What an iteration is, for each chip**: B = {work.problems} problems, N = {work.simulations} simulations, "
        f"K = {work.candidates} candidates, L = {work.step} tokens, P = {work.prompt}, D = {work.steps}; "
        f"{work.learner_steps} optimizer steps of {work.rows} trees with M = {work.row_nodes} nodes in "
        f"{work.micro_batches} parts "
        "(`configs/gsm8k_qwen2p5_0p5b.py`)."
    )
    return markdown_table(caption, titles, rows)


def memory_table() -> str:
    rows = []
    for name in MODELS:
        for trained in TRAINED:
            work = example(name, trained)
            parts = (formulas.kept_bytes, formulas.page_bytes, formulas.self_play_bytes, formulas.learn_bytes)
            sizes = [*(part(work) for part in parts), formulas.peak_bytes(work)]
            most = [floors.most_problems(work, chip) for chip in CHIPS]
            rows.append([name, trained, *(_number(size / memory.GIB) for size in sizes), *(_fits(n) for n in most)])
    titles = ["model", "trained", "kept", "pages", "within self-play", "within learning", "peak"]
    limits = [f"{chip.name}, {chip.memory / memory.GIB:.1f} GiB" for chip in CHIPS]
    caption = (
        "**What a replica needs under `pmap`, GiB a chip, on any number of chips**; and the most problems a chip for "
        "which it fits."
    )
    return markdown_table(caption, [*titles, *limits], rows)


def replica_table() -> str:
    rows = []
    for name in MODELS:
        for trained in TRAINED:
            work = example(name, trained)
            for chip in CHIPS:
                if formulas.peak_bytes(work) > chip.memory:
                    continue
                weights = formulas.decode_passes(work) * formulas.weight_bytes(work)
                play, learn = floors.self_play_seconds(work, chip), floors.learn_seconds(work, chip)
                reduced = [
                    work.learner_steps * floors.all_reduce_seconds(chip, formulas.gradient_bytes(work), number)
                    for number in CHIP_COUNTS
                ]
                times = [
                    formulas.self_play_flops(work) / chip.flops, weights / chip.read, play, learn, *reduced[1:],
                    play + learn, play + learn + reduced[-1],
                ]  # fmt: skip
                rows.append([name, trained, chip.name, *map(_number, times), f"{floors.break_even(work, chip):,}"])
    counts = [f"{number:,}" for number in CHIP_COUNTS]
    titles = [
        "model", "trained", "chip", "self-play: products", "weights read to decode", "self-play at least",
        "learning at least", *(f"all-reduce, {number} chips" for number in counts[1:]),
        "iteration, 1 chip", f"iteration, {counts[-1]} chips", "problems to break even",
    ]  # fmt: skip
    caption = "**The least seconds of an iteration under `pmap`**, where a replica fits; problems grow with the chips."
    return markdown_table(caption, titles, rows)


def sharded_table() -> str:
    rows = []
    for name in ("7 B", "70 B"):
        work = example(name, "all")
        for chip in CHIPS:
            for number in CHIP_COUNTS:
                found = floors.shard(work, chip, number)
                if found is None:
                    rows.append([name, chip.name, f"{number:,}", "does not fit", *[""] * 9])
                    continue
                times = [
                    found.self_play_seconds, found.message_seconds, found.learn_seconds, found.update_seconds,
                    found.seconds, floors.gathered_seconds(found.work, chip, number),
                ]  # fmt: skip
                size = _number(found.peak_bytes / memory.GIB)
                messages = [f"{found.messages:,}", *map(_number, times)]
                rows.append(
                    [name, chip.name, f"{number:,}", f"{found.work.problems}", f"{found.ways}", size, *messages]
                )
    titles = [
        "model", "chip", "chips", "problems a chip", "ways", "GiB a chip", "all-reduces in self-play",
        "self-play at least", "its all-reduces", "learning", "update", "iteration at least",
        "gathering for self-play instead",
    ]  # fmt: skip
    caption = (
        "**Tensor parallel in groups of `ways` chips, the optimizer's state over all chips** (not in the library): all "
        "parameters trained, at most as many problems a chip as above, the least seconds."
    )
    return markdown_table(caption, titles, rows)


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _fits(problems: int) -> str:
    return f"{problems:,}" if problems else "does not fit"


def markdown_table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join([caption, "", *("| " + " | ".join(line) + " |" for line in lines)])


def page_part(name: str) -> str:
    """What docs/scaling.md holds between `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    found = re.search(_part(name), PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE.name} has no part {name!r}.")
    return found[2]


def update_page(name: str, text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(_part(name), lambda m: m[1] + text + m[3], page, flags=re.DOTALL), encoding="utf-8")


def _part(name: str) -> str:
    return rf"(<!-- begin {name} -->\n\n)(.*?)(\n\n<!-- end {name} -->)"


if __name__ == "__main__":
    define_flags()
    run_main(main)
