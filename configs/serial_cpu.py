"""Words of S5, of up to 8 transpositions, with a step for each prefix's product, on one CPU core.

python -m alphallm.train --config=configs/serial_cpu.py --workdir=runs/serial_cpu

The warm start imitates right chains and is cut short; self-play goes on from there, rewarded for chains that are right
in every step. 14 minutes, after which 84 % of the validation problems are solved greedily instead of 40 (seed 1;
experiments/README.md has three seeds of an earlier setting). That setting, rewarded for right answers alone
(--config.task.check_steps=False), did not get going (seed 0). The task does not verify itself: at test time the value
head is the judge.

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
        task=SerialConfig(problem="s5", letters="transpositions", max_length=8, check_steps=True),
        model=ModelConfig(num_layers=2, width=128, num_heads=4, num_kv_heads=4, head_dim=32, hidden_dim=512),
        # Packed: a text has 20 to 34 tokens, its prompt included.
        warm_start=WarmStartConfig(data="solutions", num_steps=240, batch_size=32, sequence_tokens=128),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=1.5e-3, self_play_learning_rate=1e-3, final_fraction=0.02, ema_decay=0.99
        ),
        # Only the end of a chain, up to 8 steps away, tells anything: simulations go on to it. And a search that tries
        # many of 60 answers finds the right one by luck, which teaches guessing: it may write only what is likely.
        search=SearchConfig(policy="puct", rollout=True, num_simulations=16, num_candidates=4, min_p=0.05),
        # All of a chain, however seldom it was visited: most rollouts go another way.
        # After a wrong step nothing is worth anything, and the policy would drift there.
        targets=TargetConfig(nodes="all", min_visits=1, nodes_per_tree=8, candidates_per_node=4, unsolved=False),
        training=TrainingConfig(
            num_iterations=150,
            problems_per_iteration=128,
            learner_steps=6,  # each tree three times.
            trees_per_step=64,
            replay_capacity=8,
            unmasked_fraction=1.0,  # the mask would let in what min_p leaves out.
            value_weight=0.1,  # one or two layers can hardly judge a step, and trying to costs the policy.
        ),
        evaluation=EvaluationConfig(every=25, num_problems=200, num_simulations=16),
        checkpoints=CheckpointConfig(every=20),
    )
