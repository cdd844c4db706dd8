"""Converts weights: `python -m alphallm.convert --from=Qwen/Qwen2.5-0.5B --to=runs/qwen`, and the same way back.

--from is a folder of a Hugging Face model (Llama 2 or 3, Qwen2, Qwen2.5, Qwen3), or its name on the hub; or a folder
of weights that this library exported. A folder with weights.safetensors is one of ours and becomes a Hugging Face
folder; any other becomes one of ours. --to must be empty or not exist.

A folder of ours gets weights.safetensors, config.json, metrics.json, the tokenizer's files and the original config,
huggingface_config.json. Its config is that of a run on GSM8K with the converted model; all else has its default. So
`python -m alphallm.solve --workdir=FOLDER "a question"` asks it, and a config with --config.init_from=FOLDER, the same
model (copy "model" from config.json) and --config.task.tokenizer=FOLDER trains it. The value head is an untrained one.

A Hugging Face folder gets config.json, model.safetensors, value_head.safetensors and the tokenizer's files, if there
are any; `transformers.AutoModelForCausalLM.from_pretrained` loads it. Of a run, convert its export.
"""

import os

from absl import flags

from alphallm.config import from_dict, run_main, to_dict
from alphallm.errors import UserError
from alphallm.models import huggingface
from alphallm.models.export import WEIGHTS, export_weights, read_export_config


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_string("from", "", "The folder to convert, or a model's name on the Hugging Face hub.")
    flags.DEFINE_string("to", "", "The folder to write: a new or an empty one.")
    flags.DEFINE_string("dtype", "", "float32 or bfloat16; by default bfloat16 stays and all else becomes float32.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    source, folder, dtype = (getattr(flags.FLAGS, name) for name in ("from", "to", "dtype"))
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option: give --from=FOLDER and --to=FOLDER.")
    if not source or not folder:
        raise UserError("Give --from=FOLDER, or the name of a model on the Hugging Face hub, and --to=FOLDER.")
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise UserError(f"--to={folder} exists and is not an empty folder: give a new one.")
    if os.path.exists(os.path.join(source, WEIGHTS)):
        said = to_huggingface(source, folder, dtype)
    else:
        source = source if os.path.isdir(source) else huggingface.download(source)
        said = from_huggingface(source, folder, dtype)
    copied = huggingface.copy_others(source, folder)
    print(f"{folder}: {said}; {'with' if copied else 'without'} a tokenizer.")


def from_huggingface(source: str, folder: str, dtype: str) -> str:
    # They take seconds to import, which a wrong option need not wait for.
    from alphallm.tasks import TextConfig
    from alphallm.training.config import Config

    config, params = huggingface.load(source, dtype)
    task = TextConfig(max_prompt_tokens=512, max_step_tokens=128, max_steps=16)
    export_weights(folder, params, to_dict(Config(model=config, task=task)), {}, config.dtype)
    return f"{config.num_layers} layers of width {config.width}, {len(params['embedding'])} tokens, {config.dtype}"


def to_huggingface(source: str, folder: str, dtype: str) -> str:
    from alphallm.training.config import Config  # as above

    config = from_dict(Config, read_export_config(source))
    return f"a {huggingface.save(source, folder, config.model, dtype)}"


if __name__ == "__main__":
    define_flags()
    run_main(main)
