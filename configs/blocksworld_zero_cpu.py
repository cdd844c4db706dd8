"""Blocksworld from random weights and the rules alone, 4 to 6 blocks and plans of 2 to 4 steps, on one CPU core.

python -m alphallm.train --config=configs/blocksworld_zero_cpu.py --workdir=runs/blocksworld_zero_cpu

No plan is shown: a warm start on random legal play, then self-play over all legal steps, as AlphaGo Zero has it. The
test's plans have up to 6 steps, more than any that was trained on. As recorded it took 40 minutes with another run
beside it, and an iteration has become 1.7 times as fast since (experiments/LOG.md); expect 12 % of the validation
problems greedily at its start and 56 % at its end, by search 43 and 81 % (experiments/README.md).
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
        task=BlocksworldConfig(num_blocks=(4, 6), train_plan=(2, 4), test_plan=(2, 6), max_steps=6),
        model=ModelConfig(num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=384),
        warm_start=WarmStartConfig(data="random_play", num_steps=300, batch_size=64),
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, ema_decay=0.98, micro_batches=8),
        # A discount, because every step but the goal's can be undone: without it a detour costs nothing.
        search=SearchConfig(proposer="listed", num_simulations=16, max_considered=3, value_scale=0.4, discount=0.9),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, candidates_per_node=4, policy="rest"),
        # A tree is drawn six times on average, in other colours each time. In the same colours the learner fits this
        # iteration's trees and forgets the task: greedy decoding fell (experiments/LOG.md).
        training=TrainingConfig(
            num_iterations=60,
            problems_per_iteration=128,
            learner_steps=24,
            trees_per_step=32,
            replay_capacity=2,
            actor="average",
            unmasked_fraction=0.0,  # nothing listed is illegal.
        ),
        evaluation=EvaluationConfig(every=10, num_problems=200, num_simulations=16),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
