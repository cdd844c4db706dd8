"""Serial problems against their plain-Python twin. ALPHALLM_FULL=1 checks 100,000 random steps instead of a sample."""

import collections
import dataclasses
import functools
import hashlib
import os
import random

import jax
import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.tasks import ProblemError, SerialConfig, data, make_task
from alphallm.tasks.serial import serial

from .serial_twin import (
    TwinState,
    answer_of,
    device_state,
    length_of,
    lines,
    prefixes,
    twin_state,
    twin_step,
)

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_CHUNK = 1024
SMALL = SerialConfig(max_length=5, train_problems=300, validation_problems=30, test_problems=40)
CONFIGS = {
    "s5": SMALL,
    "s5 at once": dataclasses.replace(SMALL, steps=False),
    "s5 of transpositions": dataclasses.replace(SMALL, letters="transpositions", min_length=3),
    "s5 longer tests": dataclasses.replace(SMALL, min_test_length=6, max_test_length=8),
    "s5 of checked steps": dataclasses.replace(SMALL, check_steps=True),
    "z60": dataclasses.replace(SMALL, problem="z60"),
    "modular_sum": dataclasses.replace(SMALL, problem="modular_sum", modulus=7, min_length=3),
    "squaring": dataclasses.replace(SMALL, problem="squaring", modulus=61),
    "circuit": dataclasses.replace(SMALL, problem="circuit", min_length=4, max_length=6),
}


@functools.cache
def task_of(name):
    return make_task(CONFIGS[name])


@functools.cache
def splits_of(name):
    return CONFIGS[name].splits()


@functools.cache
def known_lines(name):
    return sorted(lines(CONFIGS[name]))


@functools.cache
def compiled(name):
    return jax.jit(jax.vmap(task_of(name).step))


def steps(name, states, tokens, lengths):
    """The transitions of lists of device states, tokens and lengths, as numpy arrays."""
    transitions = []
    for start in range(0, len(states), _CHUNK):
        rows = list(zip(states, tokens, lengths, strict=True))[start : start + _CHUNK]
        filled = rows + rows[:1] * (_CHUNK - len(rows))
        result = jax.device_get(compiled(name)(*jax.tree.map(lambda *leaves: np.stack(leaves), *filled)))
        transitions += [jax.tree.map(lambda x, i=i: x[i], result) for i in range(len(rows))]
    return transitions


def padded(task, tokens):
    row = np.full(task.max_step, task.vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens[: task.max_step]
    return row


def random_case(name, rng) -> tuple[TwinState, np.ndarray, np.int32]:
    """A state on the way, seldom a done one, and a step that is well-formed or nearly so."""
    task, vocabulary = task_of(name), task_of(name).vocabulary
    before = [line for line in known_lines(name) if not line.startswith("answer")] or [""]
    answer = f"answer {rng.choice(known_lines(name)).split()[-1]}\n"
    chain = (*(rng.choice(before) for _ in range(rng.randrange(task.max_steps))), answer)
    # Half of the time at the chain's end, where an answer may be right.
    steps_done = len(chain) - 1 if rng.random() < 0.5 else rng.randrange(task.max_steps)
    state = TwinState(chain, steps_done, rng.random() < 0.8, rng.random() < 0.9, rng.random() < 0.1)
    line = answer if rng.random() < 0.3 else rng.choice(known_lines(name))
    tokens, kind = vocabulary.encode(line), rng.randrange(8)
    at, length = rng.randrange(len(tokens)), len(tokens)
    if kind == 0:
        tokens[at] = rng.randrange(vocabulary.size)
    elif kind == 1:
        length = rng.randrange(-1, task.max_step + 2)
    elif kind == 2:
        del tokens[at]
        length = len(tokens)
    elif kind == 3:
        tokens = [rng.randrange(vocabulary.size) for _ in range(task.max_step)]
        length = rng.randrange(task.max_step + 1)
    row = padded(task, tokens)
    if rng.random() < 0.5:  # what follows the step is not looked at.
        row[max(length, 0) :] = rng.randrange(vocabulary.size)
    return state, row, np.int32(length)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_judged_as_the_twin_does(name):
    task, rng = task_of(name), random.Random(1)
    cases = [random_case(name, rng) for _ in range(100_000 if FULL else 2 * _CHUNK)]
    states, tokens, lengths = zip(*cases, strict=True)
    got = steps(name, [device_state(task, state) for state in states], tokens, lengths)
    seen = collections.Counter()
    for (state, row, length), transition in zip(cases, got, strict=True):
        new, legal, reward, done = twin_step(task, state, row, length)
        here = (twin_state(task, transition.state), bool(transition.legal), transition.reward, bool(transition.done))
        assert here == (new, legal, reward, done), (state, task.vocabulary.decode(row), row, length)
        seen.update(legal=legal, illegal=not legal, right=reward > 0, done=done and not state.done)
    assert min(seen.values()) > 0.05 * len(cases), seen


@pytest.mark.parametrize("name", CONFIGS)
def test_the_one_solution_has_every_prefix_s_answer_and_is_rewarded_at_its_end(name):
    task, config = task_of(name), CONFIGS[name]
    rows = splits_of(name)["train"][:60] + splits_of(name)["test"]
    chains = {}
    for row in rows:
        (text,), (chain,) = task.solution_texts(row), task.solutions(row)
        values = [line.split()[-1] for line in text.splitlines()]
        want = [answer_of(config, prefix) for prefix in prefixes(config, row)]
        assert values == (want if config.steps else want[-1:])
        assert "".join(map(task.vocabulary.decode, chain)) == text
        chains[row] = chain
    states = {row: task.problem(row).state for row in rows}
    for depth in range(task.max_steps):
        now = [row for row in rows if depth < len(chains[row])]
        lengths = [np.int32(len(chains[row][depth])) for row in now]
        got = steps(name, [states[row] for row in now], [padded(task, chains[row][depth]) for row in now], lengths)
        for row, transition in zip(now, got, strict=True):
            last = depth == len(chains[row]) - 1
            assert (transition.legal, transition.done, transition.reward) == (True, last, last), row
            states[row] = transition.state


def test_with_checked_steps_an_answer_is_worth_nothing_after_a_wrong_step_or_too_early():
    checked, (right,) = task_of("s5 of checked steps"), task_of("s5").solution_texts("21345 , 23451 , 21345")
    first, _, last = right.splitlines(keepends=True)
    for chain, worth in [(right, 1), (f"{first}12345\n{last}", 0), (f"{first}{last}", 0)]:
        for task, want in [(checked, worth), (task_of("s5"), 1)]:
            state = task.problem("21345 , 23451 , 21345").state
            for line in chain.splitlines(keepends=True):
                tokens = task.vocabulary.encode(line)
                transition = task.step(state, padded(task, tokens), len(tokens))
                assert transition.legal
                state = transition.state
            assert (transition.reward, transition.done) == (want, True), chain


def test_circuits_name_their_gates_in_order():
    task = task_of("circuit")
    (text,) = task.solution_texts("g1 T , g2 F , g3 AND g1 g2 , g4 NOT g3 , g5 OR g4 g2")
    assert text == "g1 T\ng2 F\ng3 F\ng4 T\nanswer T\n"


def test_permutations_are_applied_from_left_to_right():
    """21345 swaps 1 and 2, and 23451 takes each to the next: 1 goes to 2 and on to 3. The other way round it is 1."""
    assert task_of("s5").solution_texts("21345 , 23451") == ["21345\nanswer 32451\n"]
    assert task_of("s5").solution_texts("23451 , 21345") == ["23451\nanswer 13452\n"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_changes_nothing_but_the_reward(name):
    """Nothing that a solver may see tells what is right."""
    task, rng = task_of(name), random.Random(2)
    states, tokens, lengths = zip(*(random_case(name, rng) for _ in range(_CHUNK)), strict=True)
    values = sorted({state.reference for state in states})
    other = dict(zip(values, values[1:] + values[:1], strict=True))
    others = [
        dataclasses.replace(state, chain=(*state.chain[:-1], f"answer {other[state.reference]}\n")) for state in states
    ]
    ones = steps(name, [device_state(task, state) for state in states], tokens, lengths)
    twos = steps(name, [device_state(task, state) for state in others], tokens, lengths)
    differ = 0
    for one, two in zip(ones, twos, strict=True):
        differ += one.reward != two.reward
        for transition in (one, two):
            assert transition.done or transition.reward == 0
        told = {name: getattr(one.state, name) for name in ("reference", "right_DL", "chain_right")}
        same = dataclasses.replace(two.state, **told)
        two = dataclasses.replace(two, state=same, reward=one.reward)
        assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    assert differ > 0.05 * _CHUNK
    assert not task.self_verifying


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_are_of_the_asked_for_lengths_and_share_no_problem(name):
    config, splits = CONFIGS[name], splits_of(name)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 300, "validation": 30, "test": 40}
    assert len({row for rows in splits.values() for row in rows}) == 370
    for split, rows in splits.items():
        low, high = config.lengths(split)
        assert {length_of(config, row) for row in rows} == {*range(low, high + 1)}
    # Those of other lengths or another seed do not mix with them either: a test's problem is never trained on.
    other = dataclasses.replace(config, seed=1, max_length=7, min_test_length=0, max_test_length=0).splits()
    assert not {*other["train"]} & {*splits["test"], *splits["validation"]} and not {*other["test"]} & {
        *splits["train"]
    }
    assert {*other["train"]} != {*splits["train"]}


def test_problems_are_drawn_evenly():
    rows = SerialConfig(min_length=4, max_length=7, train_problems=6000).splits()["train"]
    lengths = collections.Counter(row.count(",") + 1 for row in rows)
    elements = collections.Counter(word for row in rows for word in row.split() if word != ",")
    for counts, number in ((lengths, 4), (elements, 120)):
        mean = sum(counts.values()) / number
        assert len(counts) == number
        # Of a chi-square with `number` - 1 degrees of freedom, 6 standard deviations above its mean.
        assert sum((n - mean) ** 2 / mean for n in counts.values()) < number + 6 * (2 * number) ** 0.5


def test_generated_splits_never_change():
    """Published numbers stand on them. New values: print the digests, and raise the config's `version`."""
    want = {
        "s5": "9645b928e942", "s5 of transpositions": "bcfbcae5f93b", "z60": "76cc0171692f",
        "modular_sum": "6dd3440a2f80", "squaring": "15eebb6380d8", "circuit": "d36c8c7adbc0",
    }  # fmt: skip
    got = {name: hashlib.sha256(repr(splits_of(name)).encode()).hexdigest()[:12] for name in want}
    assert got == want


def test_the_dataset_holds_the_splits(tmp_path):
    for split in data.SPLITS:
        assert data.load_split(SMALL, split, str(tmp_path)) == splits_of("s5")[split]


@pytest.mark.parametrize("name", CONFIGS)
def test_text_becomes_tokens_and_back(name):
    task, config = task_of(name), CONFIGS[name]
    longest = 0
    for row in [row for rows in splits_of(name).values() for row in rows]:
        problem = task.load(row, 7)
        text = task.vocabulary.decode(problem.tokens_P[: problem.length])
        assert text == row + " , _" * (config.longest - length_of(config, row)) + "\n"
        assert problem.tokens_P[0] == task.vocabulary.bos
        assert problem.index == 7 and problem.tokens_P.shape == (task.max_prompt,)
        assert task.vocabulary.words[problem.state.reference] == answer_of(config, row)
        assert task.problem(f" {row}".replace(" ,", ",")).tokens_P.tolist() == problem.tokens_P.tolist()
        longest = max(longest, problem.length)
    assert longest <= task.max_prompt
    if config.problem != "circuit":  # there all gates would have to have two inputs.
        assert longest == task.max_prompt


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s5", "", "has '' where one of 12345, 12354, …, 54321 is due"),
        ("s5", "12345 , 11345", "has '11345' where"),
        ("s5", "12345 54321", "has '12345 54321' where"),
        ("s5", "12345,,54321", "has '' where"),
        ("s5", " , ".join(["12345"] * 6), "has length 6: give 1 to 5 elements"),
        ("s5 of transpositions", "12354 , 23145", "has '23145' where one of 12354, 12435, …, 52341 is due"),
        ("z60", "3 , 60", "has '60' where one of 0, 1, …, 59 is due"),
        ("z60", "3 , 07", "has '07' where"),
        ("modular_sum", "3 , ٣", "where one of 0, 1, …, 6 is due"),
        ("squaring", "5 , ^2", "starts with '5' instead of a number and its modulus, a prime"),
        ("squaring", "5 mod9 , ^2", "starts with '5 mod9'"),
        ("squaring", "8 mod7 , ^2", "starts with 8, which is no remainder modulo 7"),
        ("squaring", "5 mod7 , ^3", "has '^3' where ^2 is due"),
        ("squaring", "5 mod7", "has length 0: give 1 to 5"),
        ("circuit", "g1 NOT g1", "has 'g1 NOT g1' where a gate such as 'g1 T' is due, with inputs from before it"),
        ("circuit", "g1 T , g2 NOT g3", "with inputs from before it"),
        ("circuit", "g1 T , g3 F", "has 'g3 F' where a gate such as 'g2 NOT g1' is due"),
        ("circuit", "g1 T , g2 AND g1", "has 'g2 AND g1' where"),
        ("circuit", "g1 T , g2", "has 'g2' where"),
        ("circuit", "g1 T , g2 XOR g1 g1", "has 'g2 XOR g1 g1' where"),
    ],
)
def test_a_bad_problem_is_refused_in_one_sentence(name, text, message):
    with pytest.raises(ProblemError, match=message.replace("^", r"\^")) as error:
        task_of(name).problem(text)
    assert repr(text) in str(error.value) and "give 1 to" in str(error.value) and "\n" not in str(error.value)
    example = str(error.value).rpartition("for example ")[2].strip("'.")
    task_of(name).problem(example)  # what is told to be right is.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem": "s6"}, "Unknown problem 's6': give one of s5, z60, modular_sum, squaring, circuit"),
        ({"letters": "even"}, "Unknown letters 'even': give one of all, transpositions"),
        ({"min_length": 0}, "min_length is 0: give 1 or more"),
        ({"min_length": 5, "max_length": 4}, "lengths of train problems are 5 to 4"),
        ({"min_test_length": 20}, "lengths of test problems are 20 to 12"),
        ({"modulus": 2}, "modulus is 2: give a number from 3 to 10000"),
        ({"test_problems": 0}, "test_problems is 0"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SerialConfig(**fields)


def test_transpositions_are_the_ten_that_swap_two():
    rows = [row for rows in splits_of("s5 of transpositions").values() for row in rows]
    letters = {word for row in rows for word in row.split(" , ")}
    assert len(letters) == 10
    for letter in letters:
        (chain,) = task_of("s5").solution_texts(f"{letter} , {letter}")
        assert chain == f"{letter}\nanswer 12345\n" and letter != "12345"


def test_too_many_problems_are_refused():
    with pytest.raises(
        UserError, match="of 200 train problems no new ones of s5 of length 1 to 1 .*: lower train_prob"
    ):
        SerialConfig(max_length=1, train_problems=200, test_problems=1, validation_problems=1).splits()


@pytest.mark.parametrize("name", ["modular_sum", "circuit"])
def test_few_well_formed_lines_are_listed(name):
    task = task_of(name)
    listed = task.legal_steps(device_state(task, TwinState(known_lines(name)[0].split()[-1])))
    texts = [
        task.vocabulary.decode(tokens[:length])
        for tokens, length in zip(listed.tokens_AL.tolist(), listed.length_A.tolist(), strict=True)
    ]
    assert len(texts) == task.max_legal_steps and {*texts} == {*known_lines(name)} and bool(listed.valid_A.all())
    done = task.legal_steps(device_state(task, TwinState("T" if name == "circuit" else "0", done=True)))
    assert not done.valid_A.any() and not done.length_A.any() and not done.tokens_AL.any()


def test_many_are_not():
    assert task_of("s5").max_legal_steps == 0 and len(known_lines("s5")) > serial._MOST_LISTED
    with pytest.raises(UserError, match="lists no steps"):
        task_of("s5").legal_steps(None)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_keeps_the_state_s_types(name):
    task = task_of(name)
    state = task.problem(splits_of(name)["train"][0]).state
    types = {"reference": np.int32, "right_DL": np.int32, "steps_done": np.int32}
    types |= dict.fromkeys(("chain_legal", "chain_right", "done"), np.bool_)
    assert {field: value.dtype for field, value in vars(state).items()} == types
    state = jax.tree.map(jax.numpy.asarray, state)
    got = jax.eval_shape(task.step, state, np.zeros(task.max_step, np.int32), np.int32(1))
    typed = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(jax.eval_shape(lambda: tree))]
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(got.state)] == typed(state)
    assert [x.dtype for x in (got.reward, got.done, got.legal)] == [np.float32, bool, bool]
