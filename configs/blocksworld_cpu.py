"""Blocksworld, 4 to 6 blocks and plans of 2 to 6 steps, from a short imitation of shortest plans, on a CPU.

python -m alphallm.train --config=configs/blocksworld_cpu.py --workdir=runs/blocksworld_cpu

The test's plans have up to 8 steps, more than any that was trained on. The imitation takes 11 minutes on one core;
expect 89 to 91 % of the validation problems greedily after it and 99 % by verified search. Self-play does not raise
that yet (experiments/LOG.md).
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
        # Two goals in three are too far for random play to teach the value head anything.
        warm_start=WarmStartConfig(data="solutions", num_steps=1200, batch_size=64),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, self_play_learning_rate=2e-4, ema_decay=0.99),
        # A state has at most six legal steps: eight candidates hold them all, once the policy knows the rules.
        search=SearchConfig(num_simulations=24, num_candidates=8, max_considered=4, value_scale=0.1),
        # One-hot targets: spread over legal steps, a policy that has imitated forgets which of them it meant.
        targets=TargetConfig(nodes="all", nodes_per_tree=6, policy="sampled"),
        training=TrainingConfig(
            num_iterations=40,
            problems_per_iteration=64,
            learner_steps=4,  # each tree twice on average (experiments/LOG.md); not run to its end like this.
            trees_per_step=32,
            unmasked_fraction=0.1,
            value_weight=0.25,
        ),
        evaluation=EvaluationConfig(every=20, num_problems=200, num_simulations=24),
        checkpoints=CheckpointConfig(every=10, keep=2),
    )
