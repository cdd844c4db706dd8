"""The example of docs/tasks.md: its code blocks, and its task as if it were a module of the library."""

import functools
import pathlib
import re
import sys
import types

# Changes of its config that make it learn one problem in a few seconds.
TINY = {
    "training.overfit": "a1 to d2", "model.num_layers": 1, "model.width": 32, "model.hidden_dim": 64,
    "warm_start.num_steps": 160, "warm_start.batch_size": 16, "optimizer.warmup_steps": 5, "optimizer.ema_decay": 0.5,
    "search.num_simulations": 8, "evaluation.num_simulations": 8, "evaluation.every": 6, "training.num_iterations": 6,
    "training.problems_per_iteration": 8, "training.learner_steps": 8, "training.replay_capacity": 8,
    "training.trees_per_step": 8,
}  # fmt: skip
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tasks.md"


def blocks() -> list[str]:
    """The Python of the page's fenced blocks: the task, then its config file."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@functools.cache
def example() -> types.ModuleType:
    """The module that the page's first block is, imported under the name that it would have."""
    module = types.ModuleType("alphallm.tasks.knight")
    sys.modules[module.__name__] = module
    exec(compile(blocks()[0], PAGE.name, "exec"), module.__dict__)
    return module
