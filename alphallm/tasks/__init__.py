"""Problems, the grammar of their steps, and verifiers that run inside the compiled search."""

import difflib
import typing

from alphallm.errors import UserError
from alphallm.tasks.arithmetic import Arithmetic, ProblemError, TaskConfig
from alphallm.tasks.text import TextTask, TextTaskConfig

__all__ = ["Arithmetic", "ProblemError", "TaskConfig", "TextTask", "TextTaskConfig", "make_task"]

_TASKS = {"game24": Arithmetic, "countdown": Arithmetic}


def make_task(config: TaskConfig | TextTaskConfig) -> Arithmetic | TextTask:
    """The task that `config.name` names; UserError names the known ones."""
    if isinstance(config, TextTaskConfig):
        return TextTask(config)
    if config.name in typing.get_args(typing.get_type_hints(TextTaskConfig)["name"]):
        raise UserError(f"{config.name} is a task in words: start from configs/gsm8k_small.py, whose task is one.")
    if config.name not in _TASKS:
        nearest = difflib.get_close_matches(config.name, _TASKS, n=1, cutoff=0.0)[0]
        raise UserError(f"Unknown task {config.name!r}: did you mean {nearest!r}? Known tasks are {', '.join(_TASKS)}.")
    return _TASKS[config.name](config)
