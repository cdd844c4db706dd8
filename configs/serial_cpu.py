"""Words of S5, of up to 12 transpositions, with a step for each prefix's product, on a CPU.

python -m alphallm.train --config=configs/serial_cpu.py --workdir=runs/serial_cpu

The warm start imitates right chains and is cut short; self-play goes on from there. No run of it is recorded yet. The
task does not verify itself, so that at test time the value head is the judge.

Other problems: --config.task.problem=z60; without steps: --config.task.steps=False; one layer:
--config.model.num_layers=1.
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
        task=SerialConfig(problem="s5", letters="transpositions", max_length=12),
        model=ModelConfig(num_layers=2, width=128, num_heads=4, num_kv_heads=4, head_dim=32, hidden_dim=512),
        # Packed: a text has 28 to 50 tokens, its prompt included.
        warm_start=WarmStartConfig(data="solutions", num_steps=200, batch_size=32, sequence_tokens=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=1.5e-3, final_fraction=0.02, ema_decay=0.99),
        # Only the end of a chain, up to 12 steps away, tells anything: simulations go on to it. And a search that tries
        # many of 60 answers finds the right one by luck, which teaches guessing: it may write only what is likely.
        search=SearchConfig(policy="puct", rollout=True, num_simulations=32, num_candidates=4, min_p=0.05),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, policy="verified_paths", candidates_per_node=4),
        training=TrainingConfig(
            num_iterations=100,
            problems_per_iteration=64,
            learner_steps=2,
            trees_per_step=64,
            unmasked_fraction=1.0,  # the mask would let in what min_p leaves out.
            value_weight=0.1,  # one or two layers can hardly judge a step, and trying to costs the policy.
        ),
        evaluation=EvaluationConfig(every=20, num_problems=200, num_simulations=32),
        checkpoints=CheckpointConfig(every=20),
    )
