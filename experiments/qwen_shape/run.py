"""A model of a config's shape with random weights, for what can be measured without a download.

python -m experiments.qwen_shape.run --config=configs/gsm8k_qwen2p5_0p5b.py --output=runs/random --manual_dir=DATA

writes weights (bfloat16) and a tokenizer, a byte-level BPE trained on the task's training split whose vocabulary is
padded to --vocabulary_size, into --output: it stands for a converted model in --config.init_from and
--config.task.tokenizer.
"""

import dataclasses
import json
import os

from absl import flags

from alphallm.config import load_config, run_main, to_dict


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/gsm8k_qwen2p5_0p5b.py", "Whose model.")
    flags.DEFINE_string("output", "runs/random", "The folder to write.")
    flags.DEFINE_string("manual_dir", "", "The folder with the task's train.jsonl and test.jsonl.")
    flags.DEFINE_integer("vocabulary_size", 151_936, "Rows of the embedding: those of Qwen2.5.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    import jax
    import numpy as np

    from alphallm.models import LanguageModel, LoraConfig
    from alphallm.models.export import DTYPES, export_weights, flatten, unflatten
    from alphallm.tasks.text import tokenizer_of

    options = flags.FLAGS
    config = load_config(options.config)
    task = dataclasses.replace(config.task, tokenizer="", manual_dir=options.manual_dir)
    shape = dataclasses.replace(config.model, lora=LoraConfig())
    shapes = jax.eval_shape(LanguageModel(shape, options.vocabulary_size).init, jax.random.key(0))
    generator = np.random.default_rng(0)

    def some(name: str, x) -> np.ndarray:
        if name.endswith("norm"):
            return np.ones(x.shape, DTYPES["bfloat16"])
        fan_in = x.shape[-2] if x.ndim > 1 else x.shape[0] if x.ndim else 1
        return (generator.standard_normal(x.shape, np.float32) * fan_in**-0.5).astype(DTYPES["bfloat16"])

    params = {name: some(name, x) for name, x in flatten(shapes).items()}
    params["embedding"] /= DTYPES["bfloat16"].type((options.vocabulary_size / shape.width) ** 0.5)
    content = to_dict(dataclasses.replace(config, task=task, model=shape, init_from=""))
    export_weights(options.output, unflatten(params), content, {}, "bfloat16")
    tokenizer_of(task).save(options.output)
    with open(os.path.join(options.output, "huggingface_config.json"), "w", encoding="utf-8") as file:
        json.dump({"vocab_size": options.vocabulary_size}, file)
    print(f"{options.output}: {sum(x.size for x in params.values()) / 1e6:.0f} M parameters.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
