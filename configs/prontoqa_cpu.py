"""PrOntoQA of 1 to 4 hops with branches off the way, from random weights and the rules alone, on one CPU core.

python -m alphallm.train --config=configs/prontoqa_cpu.py --workdir=runs/prontoqa_cpu
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
        task=ProntoqaConfig(hops=(1, 2, 3), test_hops=(1, 2, 3, 4), max_steps=6, max_premises=19),
        model=ModelConfig(num_layers=3, width=64, num_heads=4, num_kv_heads=2, head_dim=16, hidden_dim=192),
        warm_start=WarmStartConfig(data="solutions", num_steps=300, batch_size=32, sequence_tokens=256),
        optimizer=OptimizerConfig(name="muon", learning_rate=2.5e-3, final_fraction=0.02, ema_decay=0.98),
        search=SearchConfig(num_simulations=16, num_candidates=6, max_considered=4, value_scale=0.4),
        targets=TargetConfig(nodes="all", rows_per_tree=6, policy="rest", legal_share=0.05),
        training=TrainingConfig(
            num_iterations=40,
            problems_per_iteration=64,
            learner_steps=3,
            rows_per_lane=2,
            candidates_per_row=4,
            value_weight=0.5,
        ),
        evaluation=EvaluationConfig(every=40, num_problems=100, num_simulations=16),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
