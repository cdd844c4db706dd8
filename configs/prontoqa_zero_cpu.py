"""PrOntoQA from random weights and the rules alone, 1 or 2 hops without distractors, on one CPU core.

python -m alphallm.train --config=configs/prontoqa_zero_cpu.py --workdir=runs/prontoqa_zero_cpu

No proof is shown: a warm start on random legal deductions, then self-play over all that follows, as AlphaGo Zero has
it. The test has 3 hops as well. About 16 minutes; expect 5 to 8 % of the validation problems greedily at its start and
40 to 62 % at its end (three seeds, experiments/README.md).
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import ProntoqaConfig
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
        task=ProntoqaConfig(
            hops=(1, 2), test_hops=(1, 2, 3), distractors="none", max_steps=4, max_premises=13, num_train=20_000
        ),
        model=ModelConfig(num_layers=4, width=64, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=192),
        warm_start=WarmStartConfig(data="random_play", num_steps=200, batch_size=64),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, ema_decay=0.98, micro_batches=8),
        # A discount, because a true statement that proves nothing would cost nothing.
        search=SearchConfig(proposer="listed", num_simulations=8, max_considered=3, value_scale=0.4, discount=0.9),
        targets=TargetConfig(nodes="all", nodes_per_tree=4, candidates_per_node=4, policy="rest"),
        training=TrainingConfig(
            num_iterations=80,
            problems_per_iteration=128,
            learner_steps=32,  # each tree eight times, under other names each time.
            trees_per_step=32,
            replay_capacity=2,
            actor="average",
            unmasked_fraction=0.0,  # nothing listed is illegal.
        ),
        evaluation=EvaluationConfig(every=20, num_problems=200, num_simulations=8),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
