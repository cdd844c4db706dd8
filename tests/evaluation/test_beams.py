"""Search by steps and values against plain Python, on tables."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.evaluation import MODES, Strategy, compare
from alphallm.search import CERTAIN, SearchConfig
from tests.search import tabular

SEEDS = list(range(12))
MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(max_steps=3, done=0.1, illegal=0.5)
PARAMS = MODEL.init(0)
PROBLEMS = jax.device_get(TASK.problems(SEEDS))
NUM, MIN_P = 4, 0.3


@dataclasses.dataclass
class Beam:
    state: object
    steps: tuple = ()
    log_prob: float = 0.0
    value: float = 0.0
    reward: float = 0.0
    finished: bool = False
    running: bool = True


@functools.cache
def proposer():
    @jax.jit
    def propose(tokens_P, length, index, level, w):
        problem = dataclasses.replace(
            jax.tree.map(lambda x: jnp.asarray(x)[:1], PROBLEMS), tokens_P=tokens_P[None], length=length[None]
        )
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), level), w)
        return decode.gumbel_top_k(
            MODEL, PARAMS, decode.prefill(MODEL, PARAMS, problem), key[None], num=NUM, max_length=TASK.max_step,
            step_end_SV=jnp.asarray(TASK.vocabulary.step_end_SV), pad=0,
        )  # fmt: skip

    return propose


def continued(b, beam, level, w, mode):
    """What may follow a beam, by candidate; and how many tokens were written to find it."""
    tokens = PROBLEMS.tokens_P[b, : PROBLEMS.length[b]].tolist() + [token for step in beam.steps for token in step]
    padded = np.zeros(16, np.int32)
    padded[: len(tokens)] = tokens
    got = jax.device_get(proposer()(padded, np.int32(len(tokens)), np.int32(SEEDS[b]), level, w))
    found = {}
    likeliest = np.exp(got.log_prob_BK[0][got.valid_BK[0]].max()) if got.valid_BK.any() else 0.0
    for k in range(NUM):
        after, reward, done, legal = TASK.plain_step(beam.state, got.tokens_BKL[0, k], got.length_BK[0, k])
        allowed = legal if mode == "verified" else np.exp(got.log_prob_BK[0, k]) >= MIN_P * likeliest
        if got.valid_BK[0, k] and allowed:
            value = reward if done and mode == "verified" else float(got.value_BK[0, k])
            step = tuple(got.tokens_BKL[0, k, : got.length_BK[0, k]].tolist())
            log_prob = beam.log_prob + float(got.log_prob_BK[0, k])
            going = not done and level + 1 < TASK.max_steps
            found[k] = Beam(after, (*beam.steps, step), log_prob, value, reward, done, going)
    return found, int(got.length_BK.sum())


def reference(b, width, apart, mode):
    """The answer's steps, whether it is finished, and tokens, expansions and appended tokens."""
    beams, tokens, expansions, appended = [Beam(jax.tree.map(lambda x: x[b], PROBLEMS.state))], 0, 0, 0
    for level in range(TASK.max_steps):
        following = []  # of each beam, those that may take its place, by candidate.
        for w, beam in enumerate(beams):
            options = {0: beam} if beam.finished else {}
            if beam.running:
                options, written = continued(b, beam, level, w, mode)
                tokens, expansions = tokens + written, expansions + 1
            following.append(options)
        over = functools.partial(dataclasses.replace, finished=False, running=False)
        if apart and level > 0:
            chosen = [
                max(options.values(), key=operator.attrgetter("value")) if options else over(beam)
                for beam, options in zip(beams, following, strict=True)
            ]
        else:
            every = [beam for options in following for _, beam in sorted(options.items())]
            chosen = sorted(every, key=operator.attrgetter("value"), reverse=True)[:width]
            chosen += [over(beams[0])] * (width - len(chosen))
        appended += sum(len(beam.steps[-1]) for beam in chosen if beam.running)
        beams = chosen
    finished = [beam for beam in beams if beam.finished]
    scale = SearchConfig().answer_scale
    score = lambda beam: beam.log_prob + scale * beam.value + CERTAIN * beam.reward * (mode == "verified")
    answer = max(finished, key=score) if finished else beams[0]
    return answer, tokens, expansions, appended


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "width"), [("value_greedy", 1), ("beam", 3), ("dvts", 3), ("beam", 6), ("dvts", 6)])
def test_equals_plain_python(name, width, mode):
    """Six beams are more than the four candidates of the first step."""
    strategy = Strategy(
        name, mode, NUM if name == "value_greedy" else width, SearchConfig(num_candidates=NUM, min_p=MIN_P)
    )
    result = compare.solve_all(MODEL, TASK, strategy, PARAMS, PROBLEMS)[0]
    found = 0
    for b in range(len(SEEDS)):
        answer, tokens, expansions, appended = reference(b, width, name == "dvts", mode)
        steps = [tuple(t[:n].tolist()) for t, n in zip(result.tokens_BDL[b], result.length_BD[b], strict=True) if n]
        assert steps == list(answer.steps)
        assert result.found_B[b] == answer.finished
        spent = (
            result.spend.tokens_B[b],
            result.spend.expansions_B[b],
            result.spend.positions_B[b] - PROBLEMS.length[b],
        )
        assert spent == (tokens, expansions, tokens + appended)
        found += answer.finished
    assert found and (found < len(SEEDS) or (name, mode) != ("value_greedy", "verified"))
