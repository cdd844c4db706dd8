"""An experiment's configuration: everything that a run depends on."""

import dataclasses
import math
from typing import Literal

from alphallm.errors import check_range
from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import ArithmeticConfig, TaskConfig
from alphallm.training.targets import TargetConfig


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised training before self-play."""

    # Random legal play (rules only), the same taken for solutions of what it reached (hindsight, Andrychowicz et al.
    # 2017), worked solutions (imitation, as AlphaGo), or none.
    data: Literal["random_play", "hindsight", "solutions", "none"] = "random_play"
    num_steps: int = 800
    batch_size: int = 256  # chains, or sequences of packed solutions, over all devices.
    sequence_tokens: int = 0  # of a sequence that solutions are packed into; 0 takes those of the longest one.

    def __post_init__(self):
        check_range(self, 0, math.inf, "num_steps", "sequence_tokens")
        check_range(self, 1, math.inf, "batch_size")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a warm-up and a cosine decay over the whole run, warm start included; or over each of both."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    # Of self-play, with a warm-up and a decay of its own; 0 goes on along one schedule. After imitation it wants to be
    # far smaller: the value head knows nothing yet, and large steps towards it undo what was imitated.
    self_play_learning_rate: float = 0.0
    warmup_steps: int = 50
    final_fraction: float = 0.1  # of the learning rate, at the end of the run.
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.99  # of the parameters that evaluation uses; 0 evaluates the latest.
    micro_batches: int = 1  # parts of a batch whose gradients are computed one after the other: less memory.

    def __post_init__(self):
        check_range(self, 0, math.inf, "learning_rate", "self_play_learning_rate", "warmup_steps", "weight_decay")
        check_range(self, 0, math.inf, "max_gradient_norm")
        check_range(self, 0, 1, "final_fraction", "ema_decay")
        check_range(self, 1, math.inf, "micro_batches")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop: self-play on a batch of problems, then learner steps on the replay."""

    num_iterations: int = 100
    # Over so many iterations the problems of self-play grow from those of the fewest steps to all (a curriculum; a
    # problem has as many steps as the task's own solution of it); 0 poses all of them from the first.
    curriculum_iterations: int = 0
    # A problem's text, or of a question its beginning: train and validate on it alone, to see whether learning works.
    overfit: str = ""
    problems_per_iteration: int = 64  # over all devices; also the number of the replay's lanes.
    learner_steps: int = 4  # per iteration.
    # Drawn for a learner step, over all devices: a multiple of problems_per_iteration, or a divisor, and then the lanes
    # take turns from step to step.
    trees_per_step: int = 64
    replay_capacity: int = 32  # trees of a lane.
    # Of a learner step's trees, the share that is drawn in proportion to how far the search moved the policy there.
    surprise_fraction: float = 0.0
    # Search each problem in a random equivalent form (symmetries, as in AlphaGo Zero), and learn from each tree under
    # random other names whenever it is drawn.
    augment: bool = True
    # Which weights search: the latest, or their average (optimizer.ema_decay), which changes less from step to step.
    actor: Literal["latest", "average"] = "latest"
    unmasked_fraction: float = 0.25  # of problems searched without the legality mask.
    reanalyse_fraction: float = 0.0  # of problems taken from the replay instead of the training split.
    value_weight: float = 1.0  # of the value loss.

    def __post_init__(self):
        check_range(self, 0, math.inf, "num_iterations", "curriculum_iterations", "learner_steps", "value_weight")
        check_range(self, 1, math.inf, "problems_per_iteration", "trees_per_step", "replay_capacity")
        check_range(self, 0, 1, "unmasked_fraction", "reanalyse_fraction", "surprise_fraction")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated while training, on validation problems."""

    every: int = 20  # iterations.
    num_problems: int = 64
    num_simulations: int = 32

    def __post_init__(self):
        check_range(self, 1, math.inf, "every", "num_problems", "num_simulations")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 20  # iterations.
    keep: int = 2

    def __post_init__(self):
        check_range(self, 1, math.inf, "every", "keep")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 0
    init_from: str = ""  # a run's or an export's folder whose weights to start from.
    task: TaskConfig = ArithmeticConfig()
    model: ModelConfig = ModelConfig()
    search: SearchConfig = SearchConfig()
    targets: TargetConfig = TargetConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
