"""GSM8K from random weights: a small model, and a tokenizer trained on the training split.

python -m alphallm.train --config=configs/gsm8k_small.py --workdir=runs/gsm8k_small

It is there to show the whole loop on real text on a CPU: a model of two million parameters that has read nothing else
solves few of these problems.
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import TextConfig
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
        # Self-play is on the problems that such a model can partly solve: those of two lines and an answer.
        task=TextConfig(
            name="gsm8k", max_prompt_tokens=128, max_step_tokens=48, max_steps=3, max_solution_steps=3, calculator=True
        ),
        model=ModelConfig(num_layers=4, width=192, num_heads=6, num_kv_heads=3, head_dim=32, hidden_dim=512),
        warm_start=WarmStartConfig(data="solutions", num_steps=1000, batch_size=16, sequence_tokens=512),
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, ema_decay=0.99),
        search=SearchConfig(num_simulations=16, num_candidates=8, max_considered=8, value_scale=0.2),
        # A line of text has a probability of a millionth: beside "everything else" the candidates would not be seen.
        targets=TargetConfig(nodes="all", nodes_per_tree=4, policy="candidates", candidates_per_node=8),
        training=TrainingConfig(
            num_iterations=30,
            problems_per_iteration=32,
            learner_steps=4,
            trees_per_step=8,
            replay_capacity=64,
        ),
        evaluation=EvaluationConfig(every=10, num_problems=123, num_simulations=16),
        checkpoints=CheckpointConfig(every=10),
    )
