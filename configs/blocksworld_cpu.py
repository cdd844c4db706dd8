"""Blocksworld, 4 to 6 blocks and plans of 2 to 6 steps, from random weights and the rules alone, on two CPU cores.

python -m alphallm.train --config=configs/blocksworld_cpu.py --workdir=runs/blocksworld_cpu

The test's plans have up to 8 steps, more than any that was trained on.
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import BlocksworldConfig
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
        task=BlocksworldConfig(num_blocks=(4, 6), train_plan=(2, 6), test_plan=(2, 8), max_steps=8),
        model=ModelConfig(num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=384),
        # A goal of one fact is reached by random play often enough for the value head to begin with.
        warm_start=WarmStartConfig(data="random_play", num_steps=400, batch_size=64),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, ema_decay=0.99),
        # A state has at most six legal steps: eight candidates hold them all, once the policy knows the rules.
        search=SearchConfig(num_simulations=24, num_candidates=8, max_considered=4, value_scale=0.4),
        targets=TargetConfig(nodes="all", rows_per_tree=6, policy="rest", legal_share=0.05),
        training=TrainingConfig(num_iterations=120, problems_per_iteration=64, learner_steps=12, rows_per_lane=1),
        evaluation=EvaluationConfig(every=30, num_problems=100, num_simulations=32),
        checkpoints=CheckpointConfig(every=30, keep=2),
    )
