"""Decoding against `transformers.generate`: the same weights, machine, batch and lengths, in one process.

python -m experiments.benchmark.generate [--output=FILE]     (needs the extra [parity]; alone on the machine)

Greedy decoding of 128 tokens after a prompt of 32 by a Llama of 25 M parameters in float32, with a key-value cache on
both sides; the tokens must be equal. The utilisation is that of the matrix products' peak, measured in the same run.
"""

import json
import os
import statistics
import tempfile
import time
from typing import Any

from absl import flags

from alphallm.config import run_main

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT, GENERATED, VOCABULARY = 32, 128, 4096
BATCHES = (1, 32)


def define_flags() -> None:
    flags.DEFINE_string("output", os.path.join(HERE, "generate.json"), "The file of the results.")
    flags.DEFINE_integer("repeats", 3, "Timed calls of each, after one that is not.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    from alphallm import decode
    from alphallm.display import print_table
    from alphallm.models import LanguageModel, huggingface
    from alphallm.types import Problem
    from experiments.benchmark import measure
    from experiments.benchmark.search import machine

    options = flags.FLAGS
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=7, num_attention_heads=8,
            num_key_value_heads=4, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config, params = huggingface.load(folder)
    model = LanguageModel(config, VOCABULARY)
    params = jax.device_put(params)
    peak = measure.matrix_peak()
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        tokens = np.random.default_rng(0).integers(3, VOCABULARY, (batch, PROMPT))
        problem = Problem(jnp.asarray(tokens), jnp.full((batch,), PROMPT), None, jnp.arange(batch))
        keys = jax.random.split(jax.random.key(0), batch)
        never = np.zeros((1, VOCABULARY), np.int8)

        @jax.jit
        def generate(params, problem=problem, keys=keys, never=never):
            prefix = decode.prefill(model, params, problem)
            found = decode.iid(
                model, params, prefix, keys, num=1, max_length=GENERATED, step_end_SV=never, pad=0, temperature=0.0
            )
            return found.tokens_BKL[:, 0]

        def reference(tokens=tokens):
            inputs = torch.asarray(tokens)
            with torch.inference_mode():
                return theirs.generate(
                    inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=GENERATED,
                    min_new_tokens=GENERATED, pad_token_id=0,
                )[:, PROMPT:].numpy()  # fmt: skip

        ours, seconds = timed(lambda generate=generate: np.asarray(generate(params)), options.repeats)
        other, their_seconds = timed(reference, options.repeats)
        positions = batch * (PROMPT + GENERATED)
        rows.append(
            {
                "batch": batch, "parameters": model.num_params(), "seconds": seconds, "of transformers": their_seconds,
                "times as fast": their_seconds / seconds, "tokens a second": batch * GENERATED / seconds,
                "of the matrix peak": positions * model.flops_per_token() / seconds / peak,
                "equal tokens": float((ours == other).mean()),
            }
        )  # fmt: skip
    print_table("Greedy decoding", rows)
    about = {**machine(), "peak_flops": peak, "torch": torch.__version__, "transformers": transformers.__version__}
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump({**about, "torch_threads": torch.get_num_threads(), "rows": rows}, file, indent=2)


def timed(function, repeats: int):
    result, seconds = function(), []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return result, statistics.median(seconds)


if __name__ == "__main__":
    define_flags()
    run_main(main)
