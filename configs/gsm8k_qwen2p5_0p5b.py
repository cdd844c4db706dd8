"""GSM8K from the pretrained Qwen2.5-0.5B, with LoRA: one accelerator of 16 GB (Colab's TPU v5e-1, or a GPU).

python -m alphallm.convert --from=Qwen/Qwen2.5-0.5B --to=runs/qwen2p5_0p5b
python -m alphallm.train --config=configs/gsm8k_qwen2p5_0p5b.py --workdir=runs/gsm8k_qwen2p5_0p5b

Nobody has run it to its end: no accuracy has been measured. What it costs, by count: at most 0.30 PFLOP an iteration,
three fifths of it self-play, and 0.06 EFLOP in all: 26 minutes where a fifth of a TPU v5e's 197 TFLOP/s is reached,
which is a guess. `python -m alphallm.memory --config=configs/gsm8k_qwen2p5_0p5b.py --device=v5e` says what it needs.
"""

from alphallm.models import LoraConfig, ModelConfig
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

FOLDER = "runs/qwen2p5_0p5b"


def get_config() -> Config:
    return Config(
        init_from=FOLDER,
        task=TextConfig(
            name="gsm8k", tokenizer=FOLDER, max_prompt_tokens=256, max_step_tokens=64, max_steps=9, calculator=True
        ),
        model=ModelConfig(
            num_layers=24,
            width=896,
            num_heads=14,
            num_kv_heads=2,
            head_dim=64,
            hidden_dim=4864,
            rope_theta=1_000_000.0,
            attention_bias=True,
            qk_norm=False,
            dtype="bfloat16",
            lora=LoraConfig(rank=16),
        ),
        # An epoch and a half of the worked solutions, in GSM8K's own format with its annotations.
        warm_start=WarmStartConfig(data="solutions", num_steps=240, batch_size=16, sequence_tokens=512),
        optimizer=OptimizerConfig(
            learning_rate=2e-4, warmup_steps=20, weight_decay=0.0, ema_decay=0.95, micro_batches=16
        ),
        search=SearchConfig(num_simulations=16, num_candidates=4, max_considered=4, value_scale=0.2),
        # A line of text has a probability of a millionth: beside "everything else" the candidates would not be seen.
        targets=TargetConfig(nodes="all", nodes_per_tree=4, policy="candidates", candidates_per_node=4),
        training=TrainingConfig(
            num_iterations=200,
            problems_per_iteration=32,
            learner_steps=2,
            trees_per_step=16,
        ),
        evaluation=EvaluationConfig(every=50, num_problems=64, num_simulations=16),
        checkpoints=CheckpointConfig(every=25),
    )
