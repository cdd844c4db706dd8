"""Words of S5 of up to 12 permutations, a step for each prefix's product, on a CPU: one layer is enough.

python -m alphallm.train --config=configs/serial_cpu.py --workdir=runs/serial_cpu

The warm start imitates right chains of train problems, and ends before it has them all by heart. The task does not
verify itself, so that the search has the value head as its judge. Other problems: --config.task.problem=z60, without
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
        warm_start=WarmStartConfig(data="solutions", num_steps=600, batch_size=32, sequence_tokens=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, ema_decay=0.99),
        search=SearchConfig(num_simulations=16, num_candidates=8, max_considered=4, value_scale=0.2),
        targets=TargetConfig(nodes="all", rows_per_tree=6, policy="rest", legal_share=0.0),
        training=TrainingConfig(num_iterations=100, problems_per_iteration=64, learner_steps=8, rows_per_lane=1),
        evaluation=EvaluationConfig(every=20, num_problems=200, num_simulations=24),
        checkpoints=CheckpointConfig(every=20),
    )
