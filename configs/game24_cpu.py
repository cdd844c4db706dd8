"""The Game of 24 from random weights and the rules alone, on two CPU cores.

python -m alphallm.train --config=configs/game24_cpu.py --workdir=runs/game24_cpu
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
from alphallm.training.targets import TargetConfig


def get_config() -> Config:
    return Config(
        # Six tokens hold every step between numbers that are one token each; all puzzles can be solved by such steps.
        # Puzzles with numbers above 13 are for training alone: without them the policy learns 1,062 puzzles by heart.
        task=ArithmeticConfig(name="game24", dataset="default", max_number=20, max_step_tokens=6),
        model=ModelConfig(num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=256),
        warm_start=WarmStartConfig(data="random_play", num_steps=500, batch_size=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, ema_decay=0.99),
        search=SearchConfig(num_simulations=16, num_candidates=16, max_considered=4, value_scale=0.4),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, policy="rest", legal_share=0.05),
        training=TrainingConfig(
            num_iterations=220,
            problems_per_iteration=64,
            learner_steps=16,
            trees_per_step=16,
        ),
        evaluation=EvaluationConfig(every=40, num_problems=100, num_simulations=32),
        checkpoints=CheckpointConfig(every=40, keep=2),
    )
