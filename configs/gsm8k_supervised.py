"""GSM8K's worked solutions alone: the warm start of gsm8k_small.py as a run of its own, 1,000 steps of 8,192 tokens.

python -m alphallm.train --config=configs/gsm8k_supervised.py --workdir=runs/gsm8k_supervised

Self-play goes on from it with --config=configs/gsm8k_small.py --config.warm_start.data=none
--config.init_from=runs/gsm8k_supervised/export.
"""

import dataclasses

from alphallm.training.config import Config
from configs import gsm8k_small


def get_config() -> Config:
    config = gsm8k_small.get_config()
    return dataclasses.replace(config, training=dataclasses.replace(config.training, num_iterations=0))
