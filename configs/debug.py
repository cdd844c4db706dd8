"""Overfits one puzzle in about a minute: for whoever changes something.

python -m alphallm.train --config=configs/debug.py --workdir=runs/debug

Expect: every strategy solves the puzzle in the last table, greedy decoding included.
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import ArithmeticConfig
from alphallm.training.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    OptimizerConfig,
    TrainingConfig,
    WarmStartConfig,
)


def get_config() -> Config:
    return Config(
        task=ArithmeticConfig(max_step_tokens=6),
        model=ModelConfig(num_layers=2, width=64, num_heads=2, num_kv_heads=1, head_dim=32, hidden_dim=128),
        warm_start=WarmStartConfig(num_steps=200, batch_size=32),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, warmup_steps=20, ema_decay=0.9),
        search=SearchConfig(num_simulations=16, num_candidates=16, value_scale=0.2),
        training=TrainingConfig(
            overfit="2 4 6 8", num_iterations=30, problems_per_iteration=8, learner_steps=4, trees_per_step=8
        ),
        evaluation=EvaluationConfig(every=10, num_simulations=16),
        checkpoints=CheckpointConfig(every=10),
    )
