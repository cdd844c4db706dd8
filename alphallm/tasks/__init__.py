"""Problems, the grammar of their steps, and verifiers that run inside the compiled search.

A task is known once its config's class is imported: those that are imported here always are.
"""

from alphallm.tasks.arithmetic import Arithmetic, ArithmeticConfig
from alphallm.tasks.base import ProblemError, Task, TaskConfig
from alphallm.tasks.blocksworld import Blocksworld, BlocksworldConfig
from alphallm.tasks.igsm import Igsm, IgsmConfig
from alphallm.tasks.prontoqa import Prontoqa, ProntoqaConfig
from alphallm.tasks.serial import Serial, SerialConfig
from alphallm.tasks.text import TextConfig, TextTask

__all__ = [
    "Arithmetic",
    "ArithmeticConfig",
    "Blocksworld",
    "BlocksworldConfig",
    "Igsm",
    "IgsmConfig",
    "ProblemError",
    "Prontoqa",
    "ProntoqaConfig",
    "Serial",
    "SerialConfig",
    "Task",
    "TaskConfig",
    "TextConfig",
    "TextTask",
    "make_task",
]


def make_task(config: TaskConfig) -> Task:
    """The task of a config."""
    return config.make()
