"""Words of S5 of up to 12 permutations, a step for each prefix's product, on a CPU: one layer is enough.

python -m alphallm.train --config=configs/serial_cpu.py --workdir=runs/serial_cpu

Right chains teach nearly all of it. Self-play comes last, at the schedule's small learning rates, and gives the value
head, which is the search's judge: the task does not verify itself. Other problems: --config.task.problem=z60, without
steps: --config.task.steps=False, other depths: --config.model.num_layers=4.
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import SerialConfig
from alphallm.training.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    OptimizerConfig,
    TrainingConfig,
    WarmStartConfig,
)
from alphallm.training.targets import TargetConfig


def get_config() -> Config:
    return Config(
        task=SerialConfig(problem="s5", max_length=12),
        model=ModelConfig(num_layers=1, width=128, num_heads=4, num_kv_heads=4, head_dim=32, hidden_dim=512),
        # Packed: a text has 28 to 50 tokens, its prompt included.
        warm_start=WarmStartConfig(data="solutions", num_steps=1000, batch_size=32, sequence_tokens=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, final_fraction=0.02, ema_decay=0.99),
        # Chains have up to 12 steps, and only their end tells anything: simulations go on to it.
        search=SearchConfig(policy="puct", rollout=True, num_simulations=32, num_candidates=4),
        targets=TargetConfig(nodes="all", rows_per_tree=6),
        training=TrainingConfig(
            num_iterations=40,
            problems_per_iteration=64,
            learner_steps=4,
            rows_per_lane=1,
            candidates_per_row=4,
        ),
        evaluation=EvaluationConfig(every=10, num_problems=200, num_simulations=32),
        checkpoints=CheckpointConfig(every=20),
    )
