"""What one iteration costs on one device: FLOPs, bytes and messages, in closed form.

The formulas count what the compiled programs do, masked slots included, since shapes are static; tests/test_cost.py
compares them with the programs, and `python -m experiments.benchmark.scale` with clocks. docs/scaling.md is about them.
"""

import dataclasses
from typing import Any

from alphallm.models import ModelConfig
from alphallm.models.transformer import PROJECTIONS
from alphallm.training.config import Config

FLOAT32 = 4  # bytes of a trained parameter, of its gradient, of its average, and of each of Adam's two moments.


@dataclasses.dataclass(frozen=True)
class Work:
    """One device's share of an iteration."""

    model: ModelConfig
    vocabulary: int  # V
    problems: int  # B
    simulations: int  # N
    candidates: int  # K
    prompt: int  # P
    step: int  # L
    steps: int  # D
    learner_steps: int
    rows: int  # R, trees of a learner step.
    row_nodes: int  # M, of a tree, those that the learner looks at.
    row_candidates: int  # K', of a node, those that the learner looks at.
    micro_batches: int = 1
    replay_rows: int = 0  # of a lane; there is a lane for each problem.

    @property
    def pages(self) -> int:
        """Steps that may precede a step (`_Expander._pages`)."""
        return max(1, self.steps - 1)

    @property
    def slots(self) -> int:
        """S: cached positions that a node's candidates attend to, real or masked."""
        return self.prompt + self.pages * self.step

    @property
    def row_tokens(self) -> int:
        """Positions of a row in the learner's packed pass (`learner.pack`)."""
        return self.prompt + self.row_nodes * self.row_candidates * self.step

    @property
    def row_shared(self) -> int:
        """Those of them that others attend to: the prompt, and the steps that lead to nodes."""
        return self.prompt + (self.row_nodes - 1) * self.step

    @property
    def width(self) -> int:
        """Bytes of an activation or a cached number."""
        return 2 if self.model.dtype in ("bfloat16", "float16") else 4


def work_of(config: Config, task: Any, vocabulary: int, num_devices: int = 1) -> Work:
    """The share of one of `num_devices` of an iteration of a config.

    Args:
      task: what has max_prompt, max_step and max_steps.
      vocabulary: the number of its tokens.
    """
    training = config.training
    problems = training.problems_per_iteration // num_devices
    return Work(
        model=config.model, vocabulary=vocabulary, problems=problems,
        simulations=config.search.num_simulations, candidates=config.search.num_candidates, prompt=task.max_prompt,
        step=task.max_step, steps=task.max_steps, learner_steps=training.learner_steps,
        rows=training.trees_per_step // num_devices,
        row_nodes=min(config.targets.nodes_per_tree, config.search.num_simulations + 1),
        row_candidates=min(config.targets.candidates_per_node, config.search.num_candidates),
        micro_batches=config.optimizer.micro_batches,
        replay_rows=training.replay_capacity,
    )  # fmt: skip


# Parameters


def matrices(model: ModelConfig) -> dict[str, int]:
    """Parameters of each matrix of one layer, by the name of the projection."""
    e, f = model.width, model.hidden_dim
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {"q": e * queries, "k": e * keys, "v": e * keys, "o": queries * e, "gate": e * f, "up": e * f, "down": f * e}


def lora_matrices(model: ModelConfig) -> int:
    """Parameters of the two low-rank matrices of all adapted projections of one layer."""
    e, f, rank = model.width, model.hidden_dim, model.lora.rank
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    sides = {
        "q": e + queries,
        "k": e + keys,
        "v": e + keys,
        "o": queries + e,
        "gate": e + f,
        "up": e + f,
        "down": f + e,
    }
    return sum(rank * sides[name] for name in PROJECTIONS if name in model.lora.projections and name != "head")


def lora_head(model: ModelConfig, vocabulary: int) -> int:
    return model.lora.rank * (model.width + vocabulary) if "head" in model.lora.projections else 0


def parameters(model: ModelConfig, vocabulary: int) -> int:
    """All of them, those of LoRA included (`Transformer.__init__`)."""
    e, heads = model.width, (model.num_heads, model.num_kv_heads)
    layer = sum(matrices(model).values()) + lora_matrices(model) + 2 * e
    layer += (heads[0] + 2 * heads[1]) * model.head_dim * model.attention_bias + e * model.output_bias
    layer += 2 * model.head_dim * model.qk_norm
    return tables(model, vocabulary) + model.num_layers * layer + e + lora_head(model, vocabulary) + _value_head(model)


def tables(model: ModelConfig, vocabulary: int) -> int:
    """Of the embedding, and of the output matrix where that is another."""
    return vocabulary * model.width * (1 if model.tied_embeddings else 2)


def trained(model: ModelConfig, vocabulary: int) -> int:
    """Those that have a gradient, an average and an optimizer's state (`lora.is_trained`)."""
    if not model.lora.rank:
        return parameters(model, vocabulary)
    low_rank = model.num_layers * lora_matrices(model) + lora_head(model, vocabulary)
    return low_rank + model.width + _value_head(model)


def _value_head(model: ModelConfig) -> int:
    return model.width**2 + 2 * model.width + 1


# FLOPs of matrix products


def trunk_flops(work: Work, positions: int, slots: int) -> float:
    """Of `positions` new positions that attend to `slots` positions each, through all layers, forward."""
    model = work.model
    of_matrices = 2 * (sum(matrices(model).values()) + lora_matrices(model))
    return float(positions) * model.num_layers * (of_matrices + _attention(model, slots))


def _attention(model: ModelConfig, slots: int) -> int:
    """Scores and weighted sums of one position in one layer."""
    return 4 * model.num_heads * model.head_dim * slots


def logits_flops(work: Work, positions: int) -> float:
    table = work.vocabulary * work.model.width + lora_head(work.model, work.vocabulary)
    return 2.0 * positions * table


def value_flops(work: Work, positions: int) -> float:
    return 2.0 * positions * (work.model.width**2 + work.model.width)


def prefill_flops(work: Work) -> float:
    """Of the prompts (`decode.prefill`)."""
    return trunk_flops(work, work.problems * work.prompt, work.prompt) + _read(work, work.problems)


def append_flops(work: Work) -> float:
    """Of one simulation's step, run after its prefix in one pass (`decode.append`)."""
    return trunk_flops(work, work.problems * work.step, work.slots + work.step) + _read(work, work.problems)


def token_flops(work: Work, slots: int) -> float:
    """Of one token of all candidates: a pass of the loop of `decode._decode`, after a prefix of `slots` positions."""
    positions = work.problems * work.candidates
    # Beside the prefix a candidate attends to its own L slots and to the new token itself.
    return trunk_flops(work, positions, slots + work.step + 1) + _read(work, positions)


def decode_flops(work: Work) -> float:
    """Of the candidates of the root and of the N nodes, L tokens each: the most that a step may have."""
    return work.step * (token_flops(work, work.prompt) + work.simulations * token_flops(work, work.slots))


def self_play_flops(work: Work) -> float:
    return prefill_flops(work) + work.simulations * append_flops(work) + decode_flops(work)


def _read(work: Work, positions: int) -> float:
    return logits_flops(work, positions) + value_flops(work, positions)


def learn_flops(work: Work) -> float:
    """Of the iteration's optimizer steps (`learner.score` and its gradient; the optimizer's own work is not in it)."""
    model, lora = work.model, work.model.lora.rank > 0
    positions, layers = work.rows * work.row_tokens, work.model.num_layers
    each, low_rank = sum(matrices(model).values()), lora_matrices(model)
    down = matrices(model)["down"] + (_lora_down(model) if lora else 0)
    # Forward, again for the gradient (all but the last product, whose result no gradient needs), the gradient of the
    # activations, and that of the weights that are trained.
    of_weights = low_rank if lora else each
    of_matrices = 2 * (3 * (each + low_rank) - down + of_weights)
    scored = work.rows * work.row_nodes * work.row_candidates * work.step
    attention = positions * _attention(model, work.row_shared) + scored * _attention(model, work.step)
    trunk = layers * (positions * of_matrices + 4 * attention)
    table, head = work.vocabulary * model.width, lora_head(model, work.vocabulary)
    logits = 2 * scored * (2 * (table + head) + (head if lora else table))
    value = 3 * value_flops(work, work.rows * work.row_nodes * (work.row_candidates + 1))
    return float(work.learner_steps) * (trunk + logits + value)


def _lora_down(model: ModelConfig) -> int:
    """The second of the two low-rank matrices of the projection `down`."""
    return model.lora.rank * model.width if "down" in model.lora.projections else 0


# Bytes that a device holds


def kept_bytes(work: Work) -> int:
    """Between two calls: parameters, their average, Adam's moments, and the replay (`loop.State`)."""
    with_state = trained(work.model, work.vocabulary)
    frozen = parameters(work.model, work.vocabulary) - with_state
    return 4 * FLOAT32 * with_state + work.width * frozen + replay_bytes(work)


def replay_bytes(work: Work) -> int:
    """Of the rows (`targets.Row`); the problems beside them are left out."""
    m, k = work.row_nodes, work.row_candidates
    numbers = work.prompt + 2 + m * (k * (work.step + 6) + 1 + 5)
    flags = m * (k + 1) + 1
    return work.problems * work.replay_rows * (4 * numbers + flags)


def token_kv_bytes(work: Work) -> int:
    """Keys and values of one position in all layers."""
    model = work.model
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * work.width


def page_bytes(work: Work) -> int:
    """The search's pool: a page of L positions for each of the N + 1 nodes (`_Expander.empty_pool`)."""
    return token_kv_bytes(work) * work.step * work.problems * (work.simulations + 1)


def self_play_bytes(work: Work) -> int:
    """Held within self-play, beside what is kept: about what the compiler plans for (`temp_size_in_bytes`)."""
    return search_bytes(work) + _copied_bytes(work)


def search_bytes(work: Work) -> int:
    """The pages; and a node's whole path, its candidates' own slots and logits, twice: one is made from the other."""
    path = token_kv_bytes(work) * work.problems * (work.slots + work.candidates * work.step)
    logits = work.problems * work.candidates * work.vocabulary * 4
    return page_bytes(work) + 2 * (path + logits)


def learn_bytes(work: Work) -> int:
    """Held within the learner's call, beside what is kept: about what the compiler plans for.

    Gradients (of a part and their sum, where a batch has parts) and activations.
    """
    gradients = gradient_bytes(work) * (2 if work.micro_batches > 1 else 1)
    return gradients + activation_bytes(work) + _copied_bytes(work)


def activation_bytes(work: Work) -> int:
    """Of a part of a batch: the input of every layer, and the larger of the logits (with their softmax and gradients)
    and of one layer's inner activations."""
    model, rows = work.model, work.rows // work.micro_batches
    inputs = model.num_layers * rows * work.row_tokens * model.width * work.width
    logits = 4 * rows * work.row_nodes * work.row_candidates * work.step * work.vocabulary * 4
    # And the mask, as numbers to add.
    scores = (2 * model.num_heads + 1) * rows * work.row_tokens * (work.row_shared + work.step) * 4
    inner = scores + 10 * rows * work.row_tokens * model.hidden_dim * work.width
    return inputs + max(logits, inner)


def _copied_bytes(work: Work) -> int:
    """One layer's matrices, cut out of the stack; and the tables in the activations' dtype, if theirs is another."""
    cast = 0 if work.model.lora.rank or work.width == FLOAT32 else tables(work.model, work.vocabulary)
    return work.width * (sum(matrices(work.model).values()) + cast)


def peak_bytes(work: Work) -> int:
    """The most that a run holds at a time."""
    return kept_bytes(work) + max(self_play_bytes(work), learn_bytes(work))


# Bytes that must be read and written


def weight_bytes(work: Work) -> int:
    """Read by one pass over all layers and the policy head, whatever the number of positions.

    The layers are stored as they are trained, in float32, and cast within the loop over layers: four bytes a parameter
    are read, or two where LoRA leaves them frozen. The head's table is cast once, outside of the loop over tokens.
    """
    model = work.model
    stored = work.width if model.lora.rank else FLOAT32
    layers = model.num_layers * (stored * sum(matrices(model).values()) + FLOAT32 * lora_matrices(model))
    return layers + work.width * work.vocabulary * model.width + FLOAT32 * model.width**2


def token_bytes(work: Work, slots: int) -> int:
    """Read for one token of all candidates: weights, a problem's shared prefix once, and the candidates' own slots."""
    own = work.candidates * work.step
    return weight_bytes(work) + token_kv_bytes(work) * work.problems * (slots + own)


def append_read_bytes(work: Work) -> int:
    return weight_bytes(work) + token_kv_bytes(work) * work.problems * (work.slots + work.step)


def decode_passes(work: Work) -> int:
    """How often all weights are read to decode an iteration's candidates: L tokens at the root and at N nodes."""
    return work.step * (work.simulations + 1)


def learn_read_bytes(work: Work) -> int:
    """Of the iteration's optimizer steps, activations left out.

    A part of a batch reads the weights forward, again, and backward. AdamW reads five numbers a parameter (parameter,
    two moments, average, gradient) and writes four; a sum of parts' gradients costs three more a part.
    """
    parts = work.micro_batches
    numbers = 9 + (3 * parts if parts > 1 else 0)
    of_state = FLOAT32 * numbers * trained(work.model, work.vocabulary)
    return work.learner_steps * (3 * parts * weight_bytes(work) + of_state)


# Messages


def gradient_bytes(work: Work) -> int:
    """What the devices add up in one optimizer step (`learner.update`), beside a few scalars of metrics."""
    return FLOAT32 * trained(work.model, work.vocabulary)


def ring_messages(num_devices: int) -> int:
    """Messages that a device sends in one all-reduce over a ring: a reduce-scatter and an all-gather."""
    return 2 * (num_devices - 1)
