"""The loop's compiled functions and the shapes of their arguments, to plan, count or lower them without weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


def signatures(trainer: Any, state: Any) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """By name, those of `alphallm.training.steps.Steps` that a run of the trainer calls, for the devices there are.

    `state` is the trainer's initial one, or its shapes.
    """
    config, steps, devices = trainer.config, trainer.steps, jax.local_device_count()
    key = jax.eval_shape(lambda: jax.random.key(0))
    copied = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), tree)

    def divided(tree: Any, size: int) -> Any:
        """The shapes of the first `size` rows over the devices."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, size // devices, *x.shape[1:]), x.dtype), tree)

    learner, stored = copied(state.learner), divided(state.replay, config.training.problems_per_iteration)
    stored = dataclasses.replace(stored, added=copied(state.replay.added))
    found: dict[str, tuple[Callable, tuple[Any, ...]]] = {}
    if config.training.num_iterations:
        size = config.training.problems_per_iteration
        problem, lane = divided(trainer.problems, size), divided(trainer.lanes.reshape(-1), size)
        played = (copied(state.learner.weights), stored, problem, lane, copied(key))
        rows, searched, _ = jax.eval_shape(steps.self_play, *played)
        found["self-play"] = (steps.self_play, played)
        found["learn"] = (steps.learn, (learner, stored, rows, searched, lane, copied(key)))
    if trainer.warm_ticks:
        lane = divided(trainer.warm_lanes.reshape(-1), config.warm_start.batch_size)
        found["warm start"] = (steps.warm_start, (learner, copied(trainer.warm_source()), lane, copied(key)))
    return found
