"""Blocksworld from random weights and the rules alone, 4 to 6 blocks and plans of 2 to 6 steps, on one CPU core.

python -m alphallm.train --config=configs/blocksworld_hindsight_cpu.py --workdir=runs/blocksworld_hindsight_cpu

No plan is shown: the warm start takes random legal plays for plans of what they built. Then self-play over all legal
steps with a search that commits to a step after every four simulations, so that it reads how its plans end. Expect an
hour and a half on one slow core. The warm start solves 45 % of 100 validation problems greedily and 72 by search; after
20 iterations, where it was stopped, they were 53 and 71. From an earlier, weaker one all 60 made 37 and 60 into 63 and
73 (one seed each, experiments/LOG.md).
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
        warm_start=WarmStartConfig(data="hindsight", num_steps=2000, batch_size=32),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=5e-3, self_play_learning_rate=5e-4, ema_decay=0.98, micro_batches=8
        ),
        # A discount, because every step but the goal's can be undone: without it a detour costs nothing.
        search=SearchConfig(
            policy="puct", commit_every=4, proposer="listed", num_simulations=32, value_scale=0.1, discount=0.9
        ),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, candidates_per_node=4, policy="rest"),
        # A tree is drawn six times on average, in other colours each time.
        training=TrainingConfig(
            num_iterations=60,
            problems_per_iteration=128,
            learner_steps=24,
            trees_per_step=32,
            replay_capacity=2,
            actor="average",
            unmasked_fraction=0.0,  # nothing listed is illegal.
        ),
        evaluation=EvaluationConfig(every=10, num_problems=200, num_simulations=32),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
