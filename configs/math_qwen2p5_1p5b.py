"""MATH from the pretrained Qwen2.5-1.5B, with LoRA: one accelerator of 40 GB.

python -m alphallm.convert --from=Qwen/Qwen2.5-1.5B --to=runs/qwen2p5_1p5b
python -m alphallm.train --config=configs/math_qwen2p5_1p5b.py --workdir=runs/math_qwen2p5_1p5b

Nobody has run it: no accuracy has been measured. Train and test are those of Let's Verify Step by Step: 12,000
problems, and the 500 of MATH-500. By count it costs five times what gsm8k_qwen2p5_0p5b.py does: the model is three
times as large, and solutions are longer. Answers that are no integers are graded on the host.
"""

import dataclasses

from alphallm.models import ModelConfig
from alphallm.tasks import TextConfig
from alphallm.training.config import Config
from configs import gsm8k_qwen2p5_0p5b

FOLDER = "runs/qwen2p5_1p5b"


def get_config() -> Config:
    config = gsm8k_qwen2p5_0p5b.get_config()
    return dataclasses.replace(
        config,
        init_from=FOLDER,
        task=TextConfig(
            name="math", tokenizer=FOLDER, max_prompt_tokens=384, max_step_tokens=96, max_steps=12, equality="math"
        ),
        model=ModelConfig(
            num_layers=28,
            width=1536,
            num_heads=12,
            num_kv_heads=2,
            head_dim=128,
            hidden_dim=8960,
            rope_theta=1_000_000.0,
            attention_bias=True,
            qk_norm=False,
            dtype="bfloat16",
            lora=config.model.lora,
        ),
        warm_start=dataclasses.replace(config.warm_start, num_steps=400, sequence_tokens=1024),
        optimizer=dataclasses.replace(config.optimizer, micro_batches=16),
    )
