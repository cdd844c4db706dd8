"""PrOntoQA of 1 to 3 hops with branches off the way, up to 4 in the test, on a CPU.

python -m alphallm.train --config=configs/prontoqa_cpu.py --workdir=runs/prontoqa_cpu

Ten minutes of imitation of right proofs on one core; of 100 validation problems it then proved 42 % greedily, every
step valid (seed 0), and 35 % by search, value only. Self-play was not run from there: from weaker starts it made things
worse, as on the other tasks of several steps (experiments/LOG.md). The task does not verify itself: at test time the
value head judges, which imitation does not train.
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
        task=ProntoqaConfig(hops=(1, 2, 3), test_hops=(1, 2, 3, 4), max_steps=6, max_premises=19, num_train=20_000),
        model=ModelConfig(num_layers=4, width=64, num_heads=4, num_kv_heads=2, head_dim=16, hidden_dim=192),
        warm_start=WarmStartConfig(data="solutions", num_steps=3000, batch_size=16, sequence_tokens=256),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, self_play_learning_rate=2e-4, ema_decay=0.98),
        search=SearchConfig(num_simulations=16, num_candidates=6, max_considered=4, value_scale=0.4),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, policy="rest", legal_share=0.05, candidates_per_node=4),
        training=TrainingConfig(
            num_iterations=40,
            problems_per_iteration=64,
            learner_steps=3,
            trees_per_step=32,
            value_weight=0.5,
        ),
        evaluation=EvaluationConfig(every=40, num_problems=100, num_simulations=16),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
