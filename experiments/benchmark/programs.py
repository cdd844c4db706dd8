"""Self-play and learning as compiled programs, and what formulas, their text and XLA's analysis say of them."""

import functools
from typing import Any

import jax

from alphallm import memory
from alphallm.training import actor, learner, replay
from alphallm.training.config import Config
from alphallm.training.loop import State
from alphallm.training.steps import Steps, learning_rate
from experiments.benchmark import compiled, formulas
from experiments.benchmark.synthetic import Endless, FixedLengthModel


class Programs:
    """Self-play and learning of a config on a task without an end, compiled for all local devices when first asked for.

    The model's steps have exactly L tokens, so that every loop runs as often as it may.
    """

    def __init__(self, config: Config, task: Endless):
        self.config, self.task, self.devices = config, task, jax.local_device_count()
        self.model = FixedLengthModel(config.model, task)
        self._steps: Any = Steps(self.model, task, config)
        self.work = formulas.work_of(config, task, task.vocabulary.size, self.devices)
        self.problem = task.problems(config.training.problems_per_iteration)

        def state(key):
            params = self.model.init(key)
            keys_B = jax.random.split(key, len(self.problem.index))
            rows, _ = actor.self_play(self.model, task, config, params, self.problem, keys_B)
            stored = replay.empty(rows, self.problem, config.training.replay_capacity)
            return State(learner.init(config, params, learning_rate(config)), stored), rows

        key = jax.eval_shape(lambda: jax.random.key(0))
        self.state, rows = jax.eval_shape(state, key)
        learned, stored = self._copied(self.state.learner), self.state.replay
        stored = replay.Replay(
            rows=self._divided(stored.rows), problem=self._divided(stored.problem), added=self._copied(stored.added)
        )
        lanes = self._divided(jax.ShapeDtypeStruct((len(self.problem.index),), "int32"))
        common = (self._divided(self.problem), lanes, self._copied(key))
        self._self_play_of = (learned.weights, stored, *common)
        self._learn_of = (learned, stored, self._divided(rows), *common)

    @functools.cached_property
    def self_play(self) -> Any:
        return self._steps.self_play.lower(*self._self_play_of).compile()

    @functools.cached_property
    def learn(self) -> Any:
        return self._steps.learn.lower(*self._learn_of).compile()

    def _copied(self, tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.devices, *x.shape), x.dtype), tree)

    def _divided(self, tree):
        shape = lambda x: (self.devices, x.shape[0] // self.devices, *x.shape[1:])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x), x.dtype), tree)

    def predicted(self) -> dict[str, Any]:
        """What formulas, compiled text and XLA's analysis say of each program, for one device."""
        told = {}
        for name, program, flops in (
            ("self_play", self.self_play, formulas.self_play_flops(self.work)),
            ("learn", self.learn, formulas.learn_flops(self.work)),
        ):
            counted, analysis = compiled.read(program, self.task.max_step), compiled.analysis(program)
            told[name] = {
                "flops": flops, "compiled_flops": counted.products, "compiled_flops_once": counted.products_once,
                "xla_flops_once": analysis["flops"], "xla_bytes_once": analysis["bytes accessed"],
                "collective_bytes": counted.collective_bytes,
                "collectives": sum(each.times for each in counted.collectives),
            }  # fmt: skip
        return told

    def memory(self) -> dict[str, float]:
        """Bytes of one device: what is kept, and the most that a call needs besides, by plan and by formula."""
        learner, stored = self.state.learner, self.state.replay
        planned = [each.memory_analysis().temp_size_in_bytes for each in (self.self_play, self.learn)]
        return {
            "kept": memory.size_of(learner) + memory.size_of(stored) / self.devices,
            "kept_formula": formulas.kept_bytes(self.work), "self_play": planned[0], "learn": planned[1],
            "self_play_formula": formulas.self_play_bytes(self.work), "learn_formula": formulas.learn_bytes(self.work),
        }  # fmt: skip
