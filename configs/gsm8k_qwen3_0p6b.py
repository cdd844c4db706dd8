"""GSM8K from the pretrained Qwen3-0.6B, with LoRA: one accelerator of 16 GB (Colab's TPU v5e-1, or a GPU).

python -m alphallm.convert --from=Qwen/Qwen3-0.6B-Base --to=runs/qwen3_0p6b
python -m alphallm.train --config=configs/gsm8k_qwen3_0p6b.py --workdir=runs/gsm8k_qwen3_0p6b

Nobody has run it: no accuracy has been measured. Its cost is a quarter above that of gsm8k_qwen2p5_0p5b.py.
"""

import dataclasses

from alphallm.models import ModelConfig
from alphallm.tasks import TextConfig
from alphallm.training.config import Config
from configs import gsm8k_qwen2p5_0p5b

FOLDER = "runs/qwen3_0p6b"


def get_config() -> Config:
    config = gsm8k_qwen2p5_0p5b.get_config()
    return dataclasses.replace(
        config,
        init_from=FOLDER,
        task=TextConfig(
            name="gsm8k", tokenizer=FOLDER, max_prompt_tokens=256, max_step_tokens=64, max_steps=9, calculator=True
        ),
        model=ModelConfig(
            num_layers=28,
            width=1024,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            hidden_dim=3072,
            rope_theta=1_000_000.0,
            dtype="bfloat16",
            lora=config.model.lora,
        ),
    )
