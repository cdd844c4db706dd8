"""The formulas of docs/scaling.md against the compiled programs' own text and analysis, and the page against both."""

import dataclasses
import json
import math
import os
import types

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from alphallm import memory
from alphallm.errors import UserError
from alphallm.models import LanguageModel, LoraConfig, ModelConfig, lora
from alphallm.search import SearchConfig
from alphallm.training.config import Config, OptimizerConfig, TrainingConfig, WarmStartConfig
from alphallm.training.targets import TargetConfig
from experiments.benchmark import compiled, cost, floors, formulas, scale
from experiments.benchmark.programs import Programs
from experiments.benchmark.synthetic import Endless, Words

# Of the formulas' FLOPs. They count a candidate's attention to its own slots as products, and a CPU does it otherwise.
TOLERANCE = 0.03
FULL = os.environ.get("ALPHALLM_FULL") == "1"
# Nothing of these sizes is run or allocated. They are such that pages, logits and layers outweigh all else in memory.
PLAIN = ModelConfig(
    num_layers=4, width=512, num_heads=8, num_kv_heads=2, head_dim=64, hidden_dim=1024, tied_embeddings=False,
    attention_bias=True, qk_norm=False,
)  # fmt: skip
LOW_RANK = ModelConfig(
    num_layers=3, width=48, num_heads=2, num_kv_heads=1, head_dim=32, hidden_dim=96, lora=LoraConfig(rank=4)
)
LEARNER_STEPS = 3


def make(model: ModelConfig, simulations: int, candidates: int, row_candidates: int, micro_batches: int, task: Endless):
    config = Config(
        model=model,
        search=SearchConfig(num_simulations=simulations, num_candidates=candidates, max_considered=candidates),
        targets=TargetConfig(nodes_per_tree=3, candidates_per_node=row_candidates),
        warm_start=WarmStartConfig(data="none"),
        optimizer=OptimizerConfig(micro_batches=micro_batches),
        training=TrainingConfig(
            problems_per_iteration=8, learner_steps=LEARNER_STEPS, trees_per_step=16, replay_capacity=10, augment=False,
        ),
    )  # fmt: skip
    return Programs(config, task)


@pytest.fixture(scope="module")
def plain():
    """All parameters trained, on as many devices as the tests have."""
    return make(PLAIN, 31, 8, 8, 1, Endless(Words(2048), 64, 32, 5))


@pytest.fixture(scope="module")
def low_rank():
    """LoRA, parts of a batch, fewer candidates in a row than in a node, and other sizes of all else."""
    return make(LOW_RANK, 5, 3, 2, 2, Endless(Words(128), 5, 8, 4))


def loop_of_products(trips: int):
    step = lambda x, w: (jnp.tanh(x @ w), None)
    weights = jax.ShapeDtypeStruct((trips, 16, 16), "float32")
    return jax.jit(lambda x, w: lax.scan(step, x, w)[0]).lower(jnp.ones((8, 16)), weights).compile()


def test_xla_counts_the_body_of_a_loop_once_and_the_text_says_how_often_it_runs():
    once = 2 * 8 * 16 * 16
    for trips in (3, 7):
        program = loop_of_products(trips)
        assert compiled.analysis(program)["flops"] == pytest.approx(once, rel=0.2)
        found = compiled.read(program, unknown_trips=1)
        assert (found.products, found.products_once, found.collectives) == (trips * once, once, ())


def test_a_loop_without_a_known_end_is_counted_as_often_as_is_said_and_of_two_branches_the_larger():
    def run(x, w, end):
        branches = (lambda x: x @ w @ w, lambda x: jnp.sin(x))
        return lax.while_loop(lambda c: jnp.sum(c) < end, lambda c: lax.cond(c[0, 0] > 0, *branches, c), x)

    program = jax.jit(run).lower(jnp.ones((8, 16)), jnp.ones((16, 16)), 1.0).compile()
    assert compiled.read(program, unknown_trips=5).products == 5 * 2 * (2 * 8 * 16 * 16)


@pytest.mark.parametrize(
    "model",
    [
        PLAIN, LOW_RANK, ModelConfig(), ModelConfig(output_bias=True, tied_embeddings=False),
        ModelConfig(lora=LoraConfig(rank=3, projections=("q", "down"))), *(model for model, _ in cost.MODELS.values()),
    ],
)  # fmt: skip
def test_parameters(model):
    language = LanguageModel(model, 300)
    params = jax.eval_shape(language.init, jax.eval_shape(lambda: jax.random.key(0)))
    trained, _ = lora.split(params, model)
    assert formulas.parameters(model, 300) == language.num_params()
    assert formulas.trained(model, 300) == sum(math.prod(x.shape) for x in jax.tree.leaves(trained))


@pytest.mark.parametrize(
    ("which", "part"),
    [
        ("plain", "self_play"), ("plain", "learn"), ("low_rank", "learn"),
        pytest.param("low_rank", "self_play", marks=pytest.mark.skipif(not FULL, reason="ALPHALLM_FULL=1")),
    ],
)  # fmt: skip
def test_flops_are_those_of_the_compiled_program(request, which, part):
    made = request.getfixturevalue(which)
    program, formula = getattr(made, part), getattr(formulas, f"{part}_flops")(made.work)
    found = compiled.read(program, made.task.max_step)
    assert formula == pytest.approx(found.products, rel=TOLERANCE)
    # The text's count and XLA's own agree where they count the same: each loop once. XLA adds the elementwise work.
    assert found.products_once < compiled.analysis(program)["flops"] < 1.15 * found.products_once


def test_self_play_has_no_collective(plain):
    assert plain.devices > 1 and not compiled.read(plain.self_play, plain.task.max_step).collectives


@pytest.mark.parametrize("which", ["plain", "low_rank"])
def test_learning_adds_up_the_gradients_of_what_is_trained(request, which):
    made = request.getfixturevalue(which)
    found = compiled.read(made.learn, made.task.max_step)
    assert {each.kind for each in found.collectives} == {"all-reduce"}
    arrays = [(size, each.times) for each in found.collectives for size in each.sizes if size > 1]
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(made.state.learner.params)]
    assert sorted(arrays) == sorted((size, LEARNER_STEPS) for size in sizes if size > 1)
    # Beside them some metrics; and what masked means divide by, in each part of a batch.
    beside = found.collective_bytes / LEARNER_STEPS - formulas.gradient_bytes(made.work)
    assert 0 < beside <= 4 * 12 + 8 * made.work.micro_batches


@pytest.mark.parametrize("which", ["plain", "low_rank"])
def test_what_is_kept_is_what_the_state_has(request, which):
    made = request.getfixturevalue(which)
    stored = made.state.replay
    kept = memory.size_of(made.state.learner) + memory.size_of(stored.rows) / made.devices
    assert formulas.kept_bytes(made.work) + 2 * 4 + 4 == pytest.approx(kept, abs=8)  # counts of steps


@pytest.mark.parametrize("part", ["self_play", "learn"])
def test_bytes_within_a_program_are_about_those_that_the_compiler_plans(plain, part):
    told = plain.memory()
    assert told[f"{part}_formula"] == pytest.approx(told[part], rel=0.15)


def test_pages_are_those_of_the_memory_planner(plain):
    config = plain.config
    stand_in = types.SimpleNamespace(config=config, trainer=types.SimpleNamespace(task=plain.task))
    assert formulas.page_bytes(plain.work) * plain.devices == memory.Plan.pages.fget(stand_in)


def test_all_reduce_is_a_ring_within_a_group_and_one_between_groups():
    chip = dataclasses.replace(floors.CHIPS[0], group=4, inside=100.0, outside=10.0)
    assert floors.all_reduce_seconds(chip, 1000, 1) == 0
    # Three sends of a quarter to scatter, and three to gather.
    assert floors.all_reduce_seconds(chip, 1000, 4) == pytest.approx(6 * 250 / 100)
    # Then two groups, in which a chip has a quarter of the sum: one send of half of it, and one back.
    assert floors.all_reduce_seconds(chip, 1000, 8) == pytest.approx(6 * 250 / 100 + 2 * 125 / 10)


@pytest.mark.parametrize("chip", floors.CHIPS, ids=lambda chip: chip.name)
def test_floors(chip):
    work = cost.example("0.5 B", "all")
    play = floors.self_play_seconds(work, chip)
    assert play >= formulas.self_play_flops(work) / chip.flops
    assert play >= formulas.decode_passes(work) * formulas.weight_bytes(work) / chip.read
    most = floors.most_problems(work, chip)
    step = work.problems // work.micro_batches
    assert formulas.peak_bytes(floors.with_problems(work, most)) <= chip.memory
    assert formulas.peak_bytes(floors.with_problems(work, most + step)) > chip.memory
    # One way on one chip is a replica, but for a copy in bfloat16 that self-play reads and parts of a batch add into.
    alone = floors.Sharded(work, chip, 1, 1)
    assert alone.self_play_seconds < play
    assert alone.message_seconds == alone.update_seconds == 0
    assert alone.peak_bytes == pytest.approx(formulas.peak_bytes(work), rel=0.1)
    eight = floors.Sharded(work, chip, 8, 2)
    assert eight.peak_bytes < alone.peak_bytes and eight.message_seconds > 0 and eight.update_seconds > 0


def test_the_page_has_the_tables_as_they_are_made():
    again = "python -m experiments.benchmark.cost --write"
    assert cost.page_part("costs") == cost.tables(), f"docs/scaling.md is stale: run {again}"
    results = json.load(open(scale.OUTPUT, encoding="utf-8")) if os.path.exists(scale.OUTPUT) else None
    assert cost.page_part("measured") == scale.markdown(results), "docs/scaling.md is not of scale.json"


def told(job):
    """What a measurement returns, with every number the same."""
    if "peak" in job:
        return {"flops": 4.0}
    names = ("flops", "compiled_flops", "xla_flops_once", "collective_bytes", "collectives", "seconds")
    part = dict.fromkeys(names, 2.0)
    sizes = ("kept", "kept_formula", "self_play", "learn", "self_play_formula", "learn_formula", "measured")
    return {"self_play": part, "learn": part, "memory": dict.fromkeys(sizes, 1e6), "gradient_bytes": 8}


def test_an_interrupted_benchmark_goes_on(tmp_path, monkeypatch, capsys):
    output, seen = tmp_path / "scale.json", []
    options = {
        "child": "", "output": str(output), "devices": ["1", "2"], "simulations": ["16"], "problems": ["32", "64"],
        "shapes": ["7 B"], "repeats": 3,
    }  # fmt: skip
    monkeypatch.setattr(scale.flags, "FLAGS", types.SimpleNamespace(**options))

    def run(job, repeats):
        seen.append(job)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return told(job)

    monkeypatch.setattr(scale, "run", run)
    with pytest.raises(KeyboardInterrupt):
        scale.main([], {})
    assert len(json.loads(output.read_text())["rows"]) == 2
    scale.main([], {})
    jobs = [scale._key(job) for job in seen]
    assert jobs.count(jobs[2]) == 2 and len(set(jobs)) == len(jobs) - 1 == 6
    assert set(json.loads(output.read_text())["rows"]) == set(jobs)
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    results = json.loads(output.read_text())
    line = scale.measured_tables(results)["Seconds of an iteration"][-1]
    # Two devices' FLOPs at the peak, over two seconds.
    assert (line["devices"], line["self-play at the peak"], line["self-play, utilisation"]) == (2, 1.0, 0.5)
    assert "| 2 | 16 | 64 |" in scale.markdown(results)
    # Of another number of repeats, all is measured again.
    monkeypatch.setattr(scale.flags, "FLAGS", types.SimpleNamespace(**{**options, "repeats": 4}))
    scale.main([], {})
    assert len(seen) == 13


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"devices": ["3"]}, "32 problems do not divide by 3 devices"),
        ({"problems": ["x"]}, "--problems has 'x'"),
        ({"shapes": ["8 B"]}, "Unknown model '8 B' in --shapes: give some of 0.5 B, 7 B, 70 B"),
    ],
)
def test_wrong_options(monkeypatch, changed, words):
    options = {"child": "", "output": "", "devices": [], "simulations": [], "problems": [], "shapes": [], "repeats": 1}
    monkeypatch.setattr(scale.flags, "FLAGS", types.SimpleNamespace(**{**options, **changed}))
    with pytest.raises(UserError, match=words):
        scale.main([], {})
