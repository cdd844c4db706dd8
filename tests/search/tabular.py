"""A model and a task that are tables: everything a search may ask has a known answer.

The model's hidden state is a number that depends on all tokens it attends to and on their positions: the sum of
integers `code[token, position]`, small enough to be exact in float32. Policy and value are rows of tables at that
number. So one wrong page, mask or position gives another policy, and a slow reference needs no network.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.models.transformer import Hidden
from alphallm.search import search
from alphallm.types import KeyValues, Problem, Steps, Transition

PAD, END = 0, 1
ROWS = 2048  # of the tables; histories that share a row are none the worse for it.
_PRIMES = np.array([7, 31, 101, 211], np.int32)


class TabularModel:
    """Stands in for `LanguageModel`. `calls` counts the trunk's executions where `count` is set."""

    def __init__(self, vocabulary_size: int = 5, count: bool = False):
        self.vocabulary_size, self.count, self.calls = vocabulary_size, count, 0
        self.config = types.SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1, dtype="float32")

    def init(self, seed: int, sharpness: float = 1.0):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(ROWS, self.vocabulary_size)) * sharpness
        logits[:, PAD] -= 2.0
        logits[:, END] += 2.0
        return {
            "code": jnp.asarray(rng.integers(1, 2**14, (self.vocabulary_size, 64)), jnp.float32),
            "logits": jnp.asarray(logits, jnp.float32),
            "value_logit": jnp.asarray(rng.normal(size=ROWS), jnp.float32),
        }

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()):
        if self.count:
            jax.debug.callback(self._called)
        code_BX = params["code"][tokens_BX, positions_BX]
        total_BX = code_BX if mask_BXX is None else jnp.sum(jnp.where(mask_BXX, code_BX[:, None], 0.0), -1)
        for block in past:
            cached = block.keys_values.values[0, :, 0, ..., 0]
            cached_BXS = cached if cached.ndim == 3 else cached[:, None]  # each position's own slots, or shared ones.
            total_BX += jnp.sum(jnp.where(block.mask_BXS, cached_BXS, 0.0), -1)
        page = code_BX[None, :, None, :, None]
        return Hidden(total_BX[..., None], KeyValues(page, page))

    def logits(self, params, hidden):
        return params["logits"][self._row(hidden)]

    def value_logit(self, params, hidden):
        return params["value_logit"][self._row(hidden)]

    def _row(self, hidden):
        return hidden[..., 0].astype(jnp.int32) % ROWS

    def _called(self):
        self.calls += 1


class TabularTask:
    """An answer has at most `max_steps` steps; which are legal, finish it, and earn what, is drawn at random."""

    self_verifying = True
    tool = None

    def __init__(self, seed=0, max_steps=3, max_step=2, vocabulary_size=5, done=0.25, illegal=0.2, binary=False):
        rng = np.random.default_rng(seed)
        self.max_steps, self.max_step, self.vocabulary_size = max_steps, max_step, vocabulary_size
        self.max_prompt = 4
        step_end_SV = (np.arange(vocabulary_size) == END)[None]
        self.vocabulary = types.SimpleNamespace(step_end_SV=step_end_SV, pad=PAD)
        self.done, self.legal = rng.random(ROWS) < done, rng.random(ROWS) >= illegal
        self.reward = (rng.random(ROWS) < 0.3 if binary else rng.random(ROWS)).astype(np.float32)
        content = np.arange(2, vocabulary_size)
        listed = [(END, *[PAD] * (max_step - 1))] + [(a, END, *[PAD] * (max_step - 2)) for a in content]
        self.listed_AL = np.array(listed, np.int32)
        self.max_legal_steps = self.max_later_steps = len(listed)

    def problem(self, seed: int, pad_to: int | None = None, flip: bool = False) -> Problem:
        """Problem `seed`; where `flip`, every reward and every legal flag is the other way round."""
        rng = np.random.default_rng([seed, 1])
        length = int(rng.integers(1, self.max_prompt + 1))
        tokens = np.zeros(pad_to or self.max_prompt, np.int32)
        tokens[:length] = rng.integers(0, self.vocabulary_size, length)
        state = {"code": np.int32(rng.integers(ROWS)), "depth": np.int32(0), "flip": np.bool_(flip)}
        return Problem(tokens_P=tokens, length=np.int32(length), state=state, index=np.int32(seed))

    def problems(self, seeds, pad_to: int | None = None, flip: bool = False) -> Problem:
        return jax.tree.map(lambda *x: jnp.stack(x), *[self.problem(s, pad_to, flip) for s in seeds])

    def augment(self, problem, key):
        return problem

    def renaming(self, key):
        return jnp.arange(self.vocabulary_size)

    def step(self, state, tokens_L, length) -> Transition:
        real = jnp.arange(self.max_step) < length
        weights = jnp.asarray(_PRIMES[: self.max_step])
        added = jnp.sum(jnp.where(real, (tokens_L + 1) * weights, 0)) + 13 * length
        code = ((state["code"] * 17 + added) % ROWS).astype(jnp.int32)
        depth = (state["depth"] + 1).astype(jnp.int32)
        done = jnp.asarray(self.done)[code] | (depth >= self.max_steps)
        legal = jnp.asarray(self.legal)[code] ^ state["flip"]
        reward = jnp.asarray(self.reward)[code]
        reward = jnp.where(state["flip"], 1 - reward, reward)
        return Transition(
            {"code": code, "depth": depth, "flip": state["flip"]}, jnp.where(done & legal, reward, 0.0), done, legal
        )

    def plain_step(self, state, tokens, length):
        """What `step` says, as Python values: state, reward, done, legal."""
        verdict = jax.device_get(self._compiled_step(state, np.asarray(tokens, np.int32), np.int32(length)))
        return verdict.state, float(verdict.reward), bool(verdict.done), bool(verdict.legal)

    @functools.cached_property
    def _compiled_step(self):
        return jax.jit(self.step)

    def legal_steps(self, state) -> Steps:
        tokens_AL = jnp.asarray(self.listed_AL)
        length_A = 1 + jnp.sum(tokens_AL > END, -1)
        legal_A = jax.vmap(lambda tokens, length: self.step(state, tokens, length).legal)(tokens_AL, length_A)
        return Steps(jnp.where(legal_A[:, None], tokens_AL, PAD), jnp.where(legal_A, length_A, 0), legal_A)


def keys(seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))


@functools.cache
def compiled(model, task, config):
    return jax.jit(functools.partial(search, model, task, config))


def searched(model, task, config, params, seeds, verified, masked, **problem):
    """The trees of problems `seeds`, each with its own key, as numpy arrays."""
    flags = [jnp.full(len(seeds), flag) for flag in (verified, masked)]
    problems = task.problems(seeds, **problem)
    return jax.device_get(compiled(model, task, config)(params, problems, keys(seeds), *flags))
