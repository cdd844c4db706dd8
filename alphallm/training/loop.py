"""The training loop: warm start, then self-play and learning, with evaluation, samples and checkpoints on the way.

A run is a sequence of ticks: first the calls of the warm start, then the iterations. Its state after a tick depends on
the config and the tick alone, so a run that was killed and continued ends with the same bits as one that was not.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.config import from_dict, to_dict
from alphallm.display import Progress, print_table, quiet_console
from alphallm.errors import UserError
from alphallm.models import LanguageModel, lora
from alphallm.models.export import export_weights, flatten, load_export, unflatten
from alphallm.tasks import TextConfig, data, make_task
from alphallm.tasks.base import Task
from alphallm.tasks.tokenizer import TOKENIZER, Tokenizer
from alphallm.training import actor, hosts, learner, parallel, replay, run_folder
from alphallm.training import steps as steps_lib
from alphallm.training.checkpoints import Checkpoints
from alphallm.training.config import Config
from alphallm.training.demonstrations import demonstrations, hindsight
from alphallm.training.steps import WARM_STEPS_PER_CALL, Steps, key_for
from alphallm.training.validation import Validation
from alphallm.types import Problem, pytree

# What may differ when a run is continued: its length and what it shows, not what it computes.
FREE_FIELDS = ("training.num_iterations", "evaluation", "checkpoints")

# Which parameters of a run others may ask for, and the learner's field that holds them.
PARAMS = {"average": "average", "latest": "params"}

_MOST_FORMS = 16  # of each problem in a warm start by imitation.
_MOST_PLAYS = 64  # from each problem's start in a warm start by hindsight.


@pytree
class State:
    """Everything that a run carries from tick to tick, as it is on the devices."""

    learner: learner.Learner
    replay: replay.Replay


class Trainer:
    """One run: the compiled functions, the problems, and the state between ticks."""

    def __init__(self, config: Config):
        check(config)
        self.config = config
        self.task = make_task(config.task)
        self.model = LanguageModel(config.model, self.task.vocabulary.size)
        self.rows = problem_rows(config, "train")
        self.problems = data.load_problems(self.task, self.rows)
        self.lengths = problem_lengths(self.task, self.rows, config.training.curriculum_iterations > 0)
        self.steps = Steps(self.model, self.task, config)
        self.warm_ticks = warm_ticks(config)
        self.num_ticks = self.warm_ticks + config.training.num_iterations
        self.lanes = parallel.shard(np.arange(config.training.problems_per_iteration))
        self.warm_lanes = parallel.shard(np.arange(config.warm_start.batch_size))
        self._source: Any = None

    def initial_state(self) -> State:
        config = self.config
        params = self.model.init(key_for(config, steps_lib.INIT, 0))
        if config.init_from:
            params = initial_params(config.init_from, params)
        batch = self._batch(0)
        keys = jax.random.split(key_for(config, steps_lib.SELF_PLAY, 0), len(batch.index))
        rows, _ = jax.eval_shape(
            lambda p, q, k: actor.self_play(self.model, self.task, config, p, q, k), params, batch, keys
        )
        stored = replay.empty(rows, batch, config.training.replay_capacity)
        return State(learner.init(config, params, steps_lib.learning_rate(config)), stored)

    def tick(self, state: State, tick: int) -> tuple[State, dict[str, float]]:
        """The state after tick number `tick`, and its metrics. The state given is used up."""
        if tick < self.warm_ticks:
            return self._warm_start(state, tick)
        return self._iterate(state, tick - self.warm_ticks)

    def _warm_start(self, state: State, call: int):
        if self._source is None:
            self._source = parallel.replicate(self.warm_source())
        key = parallel.replicate_key(key_for(self.config, steps_lib.WARM_START, call))
        trained, metrics = self.steps.warm_start(state.learner, self._source, self.warm_lanes, key)
        return State(trained, state.replay), _floats(metrics)

    def warm_source(self) -> Any:
        """What the warm start draws from, on the host: problems, or packed solutions."""
        warm_start, seed = self.config.warm_start, self.config.seed
        drawn = warm_start.num_steps * warm_start.batch_size
        if warm_start.data == "solutions":
            rows = solved_rows(self.config)
            # Self-play will show each problem in other forms as well; more of them than are drawn would be for nothing.
            forms = min(_MOST_FORMS, -(-drawn // len(rows))) if self.config.training.augment else 1
            return demonstrations(self.task, rows, warm_start.sequence_tokens, seed, forms)
        if warm_start.data == "hindsight":
            plays = min(_MOST_PLAYS, -(-drawn // len(self.rows)))
            return hindsight(self.task, self.rows, warm_start.sequence_tokens, seed, plays)
        return self.problems

    def _iterate(self, state: State, iteration: int):
        self._source = None
        problem = parallel.shard(self._batch(iteration))
        # Both keys before anything large is started: they come from the device, which would make the host wait for it.
        play_key, learn_key = (
            parallel.replicate_key(key_for(self.config, purpose, iteration))
            for purpose in (steps_lib.SELF_PLAY, steps_lib.LEARN)
        )
        average = self.config.training.actor == "average"
        weights = state.learner.average_weights if average else state.learner.weights
        rows, problem, played = self.steps.self_play(weights, state.replay, problem, self.lanes, play_key)
        trained, stored, learned = self.steps.learn(state.learner, state.replay, rows, problem, self.lanes, learn_key)
        return State(trained, stored), {**parallel.means(played), **_floats(learned)}

    def _batch(self, iteration: int) -> Problem:
        index = steps_lib.problem_order(self.config, iteration, self.lengths)
        return jax.tree.map(lambda x: x[index], self.problems)

    def to_devices(self, state: State) -> State:
        stored = replay.Replay(
            rows=parallel.shard(state.replay.rows),
            problem=parallel.shard(state.replay.problem),
            added=parallel.replicate(state.replay.added),
        )
        return State(parallel.replicate(state.learner), stored)

    def to_host(self, state: State) -> State:
        stored = replay.Replay(
            rows=parallel.gather(state.replay.rows),
            problem=parallel.gather(state.replay.problem),
            added=parallel.first(state.replay.added),
        )
        return State(parallel.first(state.learner), stored)


@hosts.others_alive()
def train(
    config: Config, workdir: str, console=None, make_trainer: Callable[[Config], Trainer] = Trainer
) -> dict[str, float]:
    """Runs or continues the run in `workdir` to its end; returns the last evaluation, {strategy: solve rate}.

    `make_trainer` is for studies that change what an iteration does. Raises UserError where the folder holds a run of
    another config, or the loss is no longer a number.
    """
    hosts.check_same_program(config)
    hosts.on_main(lambda: run_folder.check_same_config(workdir, config, FREE_FIELDS))
    trainer = make_trainer(_with_tokenizer_of(workdir, config))
    hosts.check_same_problems(trainer.problems)
    hosts.on_main(lambda: _write_start(config, trainer.task, workdir))
    rows = problem_rows(trainer.config, "validation")[: config.evaluation.num_problems]
    plain = LanguageModel(lora.plain(config.model), trainer.task.vocabulary.size)
    validation = Validation(plain, trainer.task, config, rows)
    checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), config.checkpoints.keep)
    reference = os.path.join(workdir, "warm_start")  # Its export, once the warm start is over.
    state, start = _restore(trainer, checkpoints)
    main = hosts.is_main()
    console = console if main else quiet_console()
    with (
        hosts.asked_to_stop() as asked_to_stop,
        run_folder.RunLog(workdir, writes=main) as log,
        checkpoints,
        Progress("tick", total=trainer.num_ticks, done=start, console=console) as progress,
    ):
        log.cut_back(start)
        results = _last_results(workdir) if main else {}
        for tick in range(start, trainer.num_ticks):
            state, metrics = trainer.tick(state, tick)
            done = tick + 1
            _check_finite(metrics, done)
            log.metrics(done, metrics)
            progress.update(done, _summary(metrics))
            iteration = done - trainer.warm_ticks
            last = done == trainer.num_ticks
            if iteration == 0:
                _export(trainer, state, reference, {})
            if iteration >= 0 and (iteration % config.evaluation.every == 0 or last):
                params = lora.merge(parallel.first(state.learner.average_weights), config.model)
                results, samples = validation(params)
                if main and os.path.exists(reference):
                    log.metrics(done, {"policy/kl_to_warm_start": validation.kl(params, load_export(reference)[0])})
                _show(progress.console, log, done, iteration, results, samples)
            stopping = asked_to_stop() and not last
            if done % config.checkpoints.every == 0 or iteration == 0 or last or stopping:
                whole = trainer.to_host(state)
                if main:
                    checkpoints.save(done, whole, {"tick": done, "iteration": iteration})
            if stopping:
                checkpoints.wait()
                raise hosts.Preempted(
                    f"Stopped after tick {done} of {trainer.num_ticks}, as was asked; all is saved in {workdir!r}. The "
                    "same command continues it."
                )
        _export(trainer, state, os.path.join(workdir, "export"), results)
    return results


def _write_start(config: Config, task: Any, workdir: str):
    run_folder.write_config(workdir, to_dict(config))
    _save_tokenizer(task, workdir)


def _restore(trainer: Trainer, checkpoints: Checkpoints) -> tuple[State, int]:
    """The newest checkpoint's state on the devices, and its tick; or a fresh state and 0.

    `checkpoints` is the one that the run will save to: it has to know which ones were found damaged.
    """
    state, tick = trainer.initial_state(), 0

    def newest():
        if checkpoints.latest() is None:
            return state, 0
        found, meta = checkpoints.restore(state)
        return found, meta["tick"]

    found = hosts.on_main(newest)
    if found is not None:
        state, tick = found
    chosen = hosts.number_of_main(tick)
    if not hosts.is_main() and chosen:
        state, _ = checkpoints.restore(state, chosen)
    return trainer.to_devices(state), chosen


def _last_results(workdir: str) -> dict[str, float]:
    """The newest evaluation in a run's metrics: a run that had ended, or nearly, exports it again."""
    path = os.path.join(workdir, "metrics.jsonl")
    rows = run_folder.read_rows(path) if os.path.exists(path) else []
    prefix = "validation/"
    found: dict[str, float] = {}
    for row in rows:
        found = {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)} or found
    return found


def load_params(workdir: str, which: str = "average") -> tuple[Config, Any]:
    """Config and parameters of a run's folder (its newest checkpoint) or of an exported folder.

    `FOLDER@STEP` is the run's checkpoint of that step, if it was kept. `which` is "average" or "latest"; an export
    holds the average only.
    """
    if which not in PARAMS:
        raise UserError(f"Unknown parameters {which!r}: give one of {', '.join(PARAMS)}.")
    workdir, step = split_step(workdir)
    if os.path.exists(os.path.join(workdir, "weights.safetensors")):
        params, exported, _ = load_export(workdir)
        return _with_tokenizer_of(workdir, from_dict(Config, exported)), params
    recorded = run_folder.read_config(workdir)
    if recorded is None:
        raise UserError(f"There is no run in {workdir!r}: give a run's folder or an exported one.")
    config = _with_tokenizer_of(workdir, from_dict(Config, recorded))
    model = LanguageModel(config.model, make_task(config.task).vocabulary.size)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    field = PARAMS[which]
    trained, frozen = lora.split(params, config.model)
    template = {"learner": {field: trained, "frozen": frozen}}
    state, _ = Checkpoints(os.path.join(workdir, "checkpoints")).restore(template, step, partial=True)
    weights = lora.join(state["learner"]["frozen"], state["learner"][field])
    plain = dataclasses.replace(config, model=lora.plain(config.model))
    return plain, lora.merge(weights, config.model)


def solved_rows(config: Config) -> list[Any]:
    """The rows whose worked solutions a run starts from: also those that are too hard for its self-play."""
    if isinstance(config.task, TextConfig):
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, max_solution_steps=0))
    return problem_rows(config, "train")


def _save_tokenizer(task: Any, folder: str):
    if isinstance(task.vocabulary, Tokenizer):
        task.vocabulary.save(folder)


def _with_tokenizer_of(folder: str, config: Config) -> Config:
    """The config with the tokenizer in a run's or an exported folder, if there is one: weights go with their tokens."""
    if not isinstance(config.task, TextConfig) or not os.path.exists(os.path.join(folder, TOKENIZER)):
        return config
    return dataclasses.replace(config, task=dataclasses.replace(config.task, tokenizer=folder))


def split_step(workdir: str) -> tuple[str, int | None]:
    """`FOLDER@STEP` as folder and step; a folder that is there under its whole name has no step."""
    folder, _, number = workdir.rpartition("@")
    if not folder or not number.isdecimal() or os.path.exists(workdir):
        return workdir, None
    return folder, int(number)


def initial_params(folder: str, template) -> Any:
    """The weights of another run or export, checked against this run's model."""
    _, params = load_params(folder)
    # What LoRA adds starts as it would in a model from scratch.
    added = {name: leaf for name, leaf in flatten(template).items() if "_lora_" in name and name not in flatten(params)}
    params = unflatten({**flatten(params), **added})
    wanted = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(template)}
    given = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise UserError(
                f"init_from={folder!r} has {given.get(name, 'nothing')} for {name}, and this config's model has "
                f"{wanted.get(name, 'nothing')}: give the config the model that the weights were trained with."
            )
    return jax.tree.map(jnp.asarray, params)


def problem_rows(config: Config, split: str) -> list[Any]:
    """The rows of a split, or the one problem to overfit."""
    overfit = config.training.overfit
    if not overfit:
        return data.load_split(config.task, split)
    if isinstance(config.task, TextConfig):
        rows = [row for row in data.load_split(config.task, "train") if str(row).startswith(overfit)]
        if not rows:
            raise UserError(f"No question of the training split begins with training.overfit={overfit!r}.")
        return rows[:1]
    make_task(config.task).problem(overfit)  # Raises UserError if there is no such problem.
    return [overfit]


def problem_lengths(task: Any, rows: list[Any], differ: bool) -> np.ndarray:
    """The steps of each row's first worked solution, int [N]; all alike where it does not matter that they differ."""
    if not differ:
        return np.zeros(len(rows), np.int64)
    solutions = [task.solutions(row, 1) for row in rows]
    if not all(solutions):
        raise UserError(
            "training.curriculum_iterations orders problems by the steps of a worked solution, and the task "
            f"{task.name} has none for some: set it to 0."
        )
    return np.array([len(found[0]) for found in solutions])


def warm_ticks(config: Config) -> int:
    if config.warm_start.data == "none":
        return 0
    return -(-config.warm_start.num_steps // WARM_STEPS_PER_CALL)


def check(config: Config):
    """Raises UserError for what cannot run on this machine's devices or is contradictory."""
    devices = jax.device_count()
    for name, value in (
        ("training.problems_per_iteration", config.training.problems_per_iteration),
        ("warm_start.batch_size", config.warm_start.batch_size),
    ):
        if value <= 0 or value % devices:
            raise UserError(f"{name} is {value}: it must be a positive multiple of the {devices} devices.")
    parts = config.optimizer.micro_batches
    lanes, trees = config.training.problems_per_iteration, config.training.trees_per_step
    if trees % lanes and lanes % trees:
        raise UserError(
            f"training.trees_per_step is {trees}: give a divisor or a multiple of training.problems_per_iteration, "
            f"which is {lanes}."
        )
    batches = (trees, config.warm_start.batch_size)
    for rows in batches:
        if rows % (devices * parts):
            raise UserError(
                f"optimizer.micro_batches is {parts}: {devices} devices x {parts} must divide the learner's batch of "
                f"{batches[0]} trees (training.trees_per_step) and the warm start's of {batches[1]}."
            )
    lists = "listed" in (config.search.proposer, config.search.root_proposer)
    task = make_task(config.task)
    if not task.max_legal_steps and (lists or config.warm_start.data == "random_play"):
        raise UserError(
            f"The task {task.name} lists no legal steps: set warm_start.data to solutions or none, and search.proposer "
            "and search.root_proposer to others than listed."
        )
    if config.warm_start.data == "hindsight" and type(task).hindsight is Task.hindsight:
        raise UserError(
            f"The task {task.name} can not say what random play solves: set warm_start.data to another than hindsight."
        )
    candidates = max(config.search.root_width, task.max_legal_steps if lists else 0)
    if config.targets.policy == "candidates" and config.targets.candidates_per_node < candidates:
        raise UserError(
            f"targets.policy=candidates needs all {candidates} candidates of a node: set "
            f"targets.candidates_per_node to {candidates}."
        )


def _floats(metrics) -> dict[str, float]:
    return {name: float(value) for name, value in parallel.first(metrics).items()}


def _check_finite(metrics: dict[str, float], tick: int):
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise UserError(
                f"{name} is {value} at tick {tick}: training stopped, and the checkpoints before it are kept. Lower "
                f"optimizer.learning_rate or optimizer.max_gradient_norm in a new run; init_from takes weights over."
            )


def _summary(metrics: dict[str, float]) -> str:
    shown = {
        "search/solved": "solved",
        "policy/legal": "legal",
        "loss/policy": "policy loss",
        "loss/value": "value loss",
    }
    return ", ".join(f"{label} {metrics[name]:.3f}" for name, label in shown.items() if name in metrics)


def _show(console, log: run_folder.RunLog, tick: int, iteration: int, results: dict[str, float], samples):
    """Prints and logs solve rates, and a few samples in words."""
    log.metrics(tick, {f"validation/{name}": value for name, value in results.items()})
    print_table("", [{"iteration": iteration, **results}], console)
    for sample in samples:
        log.sample(tick, sample.title, sample.text)
        console.print(f"  {sample.title}: {sample.text}", markup=False)


def _export(trainer: Trainer, state: State, folder: str, metrics: dict[str, float]):
    if not hosts.is_main():
        return
    # An export is for other machines, which have no such folders.
    config = dataclasses.replace(
        trainer.config,
        task=trainer.config.task.portable(),
        model=lora.plain(trainer.config.model),
    )
    merged = lora.merge(parallel.first(state.learner.average_weights), trainer.config.model)
    export_weights(folder, merged, to_dict(config), metrics, dtype="bfloat16")
    _save_tokenizer(trainer.task, folder)
