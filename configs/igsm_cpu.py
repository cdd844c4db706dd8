"""iGSM, problems of 2 to 4 operations modulo 11 with sentences that are not needed, on one CPU core.

python -m alphallm.train --config=configs/igsm_cpu.py --workdir=runs/igsm_cpu

The test's problems have up to 6 operations, more than any that was trained on, and validation only problems of 4, the
only ones whose templates it has to itself. The task does not verify itself, so that at test time the value head is the
judge. With 20 iterations instead of 40 (seed 0, 12 minutes of a shared core) it solved of 100 validation problems 20 %
greedily and 24 % by search after imitation, and 19 and 23 % in the end: self-play does not raise it yet. (That was
before verified paths were learnt from whole, and before rollouts went by the policy.)
"""

from alphallm.models import ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import IgsmConfig
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
        task=IgsmConfig(
            min_ops=2, max_ops=4, test_ops=(2, 6), max_sentences=5, extra_steps=2, modulus=11, train_problems=10_000
        ),
        model=ModelConfig(num_layers=3, width=96, num_heads=4, num_kv_heads=2, head_dim=32, hidden_dim=256),
        # Packed: a text has 30 to 110 tokens, its prompt included.
        warm_start=WarmStartConfig(data="solutions", num_steps=2000, batch_size=16, sequence_tokens=192),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, self_play_learning_rate=2e-4, ema_decay=0.98),
        # A wrong number shows only at the end of a chain, and a search that tries many numbers finds the right one by
        # luck: simulations go on to the end, and only what is likely may be written.
        search=SearchConfig(policy="puct", rollout=True, num_simulations=16, num_candidates=4, min_p=0.05),
        targets=TargetConfig(nodes="all", nodes_per_tree=6, policy="verified_paths", candidates_per_node=4),
        training=TrainingConfig(
            num_iterations=40,
            problems_per_iteration=64,
            learner_steps=8,
            trees_per_step=32,
            unmasked_fraction=0.5,
            value_weight=0.25,
        ),
        evaluation=EvaluationConfig(every=20, num_problems=100, num_simulations=16),
        checkpoints=CheckpointConfig(every=20, keep=2),
    )
