"""The compiled verifier against its plain-Python twin. ALPHALLM_FULL=1 checks all 1,362 puzzles instead of a sample."""

import functools
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.tasks import ArithmeticConfig, ProblemError, make_task, solver, splits
from alphallm.tasks import vocabulary as words

from .twin import TwinState, device_numbers, device_state, legal_texts, twin_step

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_CHUNK = 4096
CONFIGS = {
    "game24": ArithmeticConfig(),
    "game24 long steps": ArithmeticConfig(max_step_tokens=16),
    "countdown": ArithmeticConfig(
        name="countdown", num_numbers=3, max_number=200, max_target=32767, max_step_tokens=39
    ),
}


@functools.cache
def task_of(name):
    return make_task(CONFIGS[name])


@functools.cache
def compiled(name, method):
    return jax.jit(jax.vmap(getattr(task_of(name), method)))


@functools.cache
def puzzles() -> tuple[tuple[int, ...], ...]:
    texts = [text for split in splits.game24_default().values() for text in split]
    return tuple(tuple(map(int, text.split())) for text in texts)


def in_chunks(function, rows):
    """The results, one a row, of a compiled function of stacked rows, whose last chunk is filled with the first row."""
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        filled = chunk + rows[:1] * (_CHUNK - len(chunk))
        result = jax.device_get(function(*jax.tree.map(lambda *leaves: np.stack(leaves), *filled)))
        yield from (jax.tree.map(lambda x, i=i: x[i], result) for i in range(len(chunk)))


def padded(task, tokens):
    row = np.full(task.max_step, words.PAD, np.int32)
    row[: len(tokens)] = tokens[: task.max_step]
    return row


def assert_like_twin(name, cases) -> list[bool]:
    """Compares `step` with the twin on (twin state, tokens_L, length); returns which cases were legal."""
    task = task_of(name)
    rows = [(device_state(task, state), tokens, np.int32(length)) for state, tokens, length in cases]
    legals = []
    for (state, tokens, length), got in zip(cases, in_chunks(compiled(name, "step"), rows), strict=True):
        new, legal, reward, done = twin_step(task, state, tokens, length)
        seen = (device_numbers(got.state), got.state.steps_done, got.state.chain_legal, got.legal, got.reward, got.done)
        want = (new.numbers, new.steps_done, new.chain_legal, legal, reward, done)
        assert seen == want, (state, task.vocabulary.decode(tokens), tokens, length)
        legals.append(legal)
    return legals


def random_state(name, rng) -> TwinState:
    """A state some legal steps into a problem, or one after an illegal step, or a done one."""
    task, config = task_of(name), CONFIGS[name]
    if name.startswith("game24"):
        state = TwinState(tuple(map(solver.Fraction, rng.choice(puzzles()))), 24)
    else:
        numbers = sorted(rng.randint(1, config.max_number) for _ in range(config.num_numbers))
        state = TwinState(tuple(map(solver.Fraction, numbers)), rng.randint(1, 300))
    for _ in range(rng.choice([*range(task.max_steps)] * 4 + [task.max_steps])):
        tokens = task.vocabulary.encode(rng.choice(sorted(legal_texts(state.numbers, False))))
        junk = tokens if rng.random() < 0.9 else tokens[::-1]
        state = twin_step(task, state, junk, len(junk))[0]
    return state


def test_every_legal_step_of_many_puzzles_is_accepted_as_the_twin_does():
    task, seen, cases = task_of("game24"), set(), []

    def visit(state):
        if state in seen or len(state.numbers) == 1:
            return
        seen.add(state)
        for text in legal_texts(state.numbers, canonical=False):
            tokens = task.vocabulary.encode(text)
            new = twin_step(task, state, tokens, len(tokens))[0]
            assert new.chain_legal, text  # whatever the twin lists, the twin accepts.
            cases.append((state, padded(task, tokens), len(tokens)))
            visit(new)

    chosen = puzzles() if FULL else random.Random(0).sample(puzzles(), 12)
    total = 0
    for i, numbers in enumerate(chosen):
        visit(TwinState(tuple(map(solver.Fraction, numbers)), 24))
        if len(cases) > 50 * _CHUNK or i == len(chosen) - 1:
            legals = assert_like_twin("game24", cases)
            total += sum(legals)
            cases.clear()
    assert total > 5000
    print(f"{len(chosen)} puzzles, {len(seen)} different states, {total} legal steps")


def mutated(task, state, tokens, rng) -> tuple[list[int], int]:
    """Tokens that are mostly illegal, and a length that is mostly right."""
    tokens, kind = list(tokens), rng.randrange(9)
    vocabulary, at = task.vocabulary, rng.randrange(len(tokens))
    text = vocabulary.decode(tokens)
    if kind == 0:
        tokens[at] = rng.randrange(vocabulary.size)
    elif kind == 1:
        return tokens, rng.choice([-1, 0, 1, len(tokens) - 1, len(tokens) + 1, task.max_step, task.max_step + 1])
    elif kind == 2:
        tokens[at:at] = [rng.choice([*range(words.DIGIT_ZERO + 10), rng.randrange(vocabulary.size)])]
    elif kind == 3:
        del tokens[at]
    elif kind == 4:  # another result of the right size: off by one, negated, inverted, not reduced.
        left, c = text[:-1].split(" = ")
        c = solver.Fraction(c)
        wrong = [str(c + 1), str(-c), f"{2 * c.numerator}/{2 * c.denominator}", f"{c.numerator}/1", "-0", f"0{abs(c)}"]
        wrong += [f"{c.denominator}/{c.numerator}".replace("/-", "/")]
        tokens = vocabulary.encode(f"{left} = {rng.choice(wrong)}\n")
    elif kind == 5:  # right arithmetic with a number that need not remain.
        a, b = rng.choice(state.numbers), solver.Fraction(rng.randint(-20, 60))
        tokens = vocabulary.encode(f"{a} + {b} = {a + b}\n")
    elif kind == 6:  # the same number twice, which may be there once.
        a = rng.choice(state.numbers)
        tokens = vocabulary.encode(f"{a} * {a} = {a * a}\n")
    elif kind == 7:  # another spelling of a number.
        a = vocabulary.decode([tokens[0]]) if at == 0 else vocabulary.decode([tokens[-2]])
        spelled = [
            {"-": words.NEGATIVE, "/": words.BAR}.get(x) or words.DIGIT_ZERO + int(x) for x in a if x in "-/0123456789"
        ]
        tokens = spelled + tokens[1:] if at == 0 else tokens[:-2] + spelled + tokens[-1:]
    else:
        tokens = [rng.randrange(vocabulary.size) for _ in range(rng.randint(1, task.max_step))]
    return tokens, len(tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_mutated_steps_are_judged_as_the_twin_does(name):
    task, rng, cases = task_of(name), random.Random(1), []
    while len(cases) < (40 * _CHUNK if FULL else _CHUNK):
        state = random_state(name, rng)
        tokens = task.vocabulary.encode(rng.choice(sorted(legal_texts(state.numbers, False)) or ["1 + 1 = 2\n"]))
        tokens, length = (tokens, len(tokens)) if rng.random() < 0.2 else mutated(task, state, tokens, rng)
        cases.append((state, padded(task, tokens), length))
    legals = assert_like_twin(name, cases)
    assert 0.1 * len(cases) < sum(legals) < 0.5 * len(cases)


@functools.cache
def step_of_one():
    return jax.jit(task_of("game24").step)


def run(puzzle, chain):
    """(legal, reward, done) of each line of a chain."""
    task, step = task_of("game24"), step_of_one()
    state, judged = task.problem(puzzle).state, []
    for line in chain.splitlines(keepends=True):
        tokens = task.vocabulary.encode(line)
        transition = step(state, padded(task, tokens), len(tokens))
        judged.append((bool(transition.legal), float(transition.reward), bool(transition.done)))
        state = transition.state
    return judged


def test_one_illegal_step_spoils_a_chain_whose_last_line_is_right():
    right = "13 - 10 = 3\n9 - 3 = 6\n4 * 6 = 24\n"
    assert run("4 9 10 13", right) == [(True, 0, False), (True, 0, False), (True, 1, True)]
    # The last line says 24 but uses a number that an illegal step claimed: nothing of it counts.
    assert run("4 9 10 13", "10 + 10 = 20\n4 * 6 = 24\n4 * 6 = 24\n") == [
        (False, 0, False),
        (False, 0, False),
        (False, 0, True),
    ]
    # Legal steps after an illegal one are legal, but the chain is not, and it ends after three steps all the same.
    assert run("4 9 10 13", "1 + 1 = 2\n13 - 10 = 3\n9 - 3 = 6\n4 * 6 = 24\n") == [
        (False, 0, False),
        (True, 0, False),
        (True, 0, True),
        (False, 0, True),
    ]
    assert run("4 9 10 13", right + "4 * 6 = 24\n")[-1] == (False, 0, True)
    assert run("4 9 10 13", "13 + 10 = 23\n23 + 9 = 32\n32 + 4 = 36\n")[-1] == (True, 0, True)
    assert run("1 1 4 6", "1 + 3 = 4\n1 + 1 = 2\n4 * 6 = 24\n") == [
        (False, 0, False),
        (True, 0, False),
        (True, 0, True),
    ]
    # Nothing is earned twice: neither by a repeated step nor by naming the target after the end.
    assert run("4 9 10 13", right + "24 = 24\n")[-1] == (False, 0, True)


def test_what_has_no_result_has_no_right_result():
    judged = run("1 1 4 6", "1 - 1 = 0\n4 / 0 = 0\n4 / 0 = 4\n")
    assert [legal for legal, _, _ in judged] == [True, False, False]
    task, step = task_of("countdown"), jax.jit(task_of("countdown").step)
    for result, legal in [("40000", False), ("0", False), ("32767", False)]:
        tokens = task.vocabulary.encode(f"200 * 200 = {result}\n")
        state = task.problem("7 200 200 -> 1").state
        assert bool(step(state, padded(task, tokens), len(tokens)).legal) == legal


def test_a_number_too_long_for_a_step_does_not_hide_a_shorter_one():
    """3000 (4 tokens, of which 8-token steps have room for 3) begins like 300 and stands in an earlier slot."""
    task = make_task(ArithmeticConfig(name="countdown", num_numbers=3, max_number=200, max_target=200))
    state = device_state(task, TwinState(tuple(map(solver.Fraction, (3000, 300, 2))), 150))
    tokens = task.vocabulary.encode("300 / 2 = 150\n")
    assert len(tokens) == task.max_step and task.step(state, padded(task, tokens), len(tokens)).legal


@pytest.mark.parametrize("name", CONFIGS)
def test_legal_steps_lists_what_the_twin_lists(name):
    task, rng = task_of(name), random.Random(2)
    states = [random_state(name, rng) for _ in range(2000 if FULL else 200)]
    rows = [(device_state(task, state),) for state in states]
    later = 0
    for state, steps in zip(states, in_chunks(compiled(name, "legal_steps"), rows), strict=True):
        running = state.steps_done < task.max_steps
        want = legal_texts(state.numbers, canonical=True) if running else set()
        want = {text for text in want if len(task.vocabulary.encode(text)) <= task.max_step}
        listed = [
            task.vocabulary.decode(tokens[:length])
            for tokens, length, valid in zip(steps.tokens_AL, steps.length_A, steps.valid_A, strict=True)
            if valid
        ]
        assert sorted(listed) == sorted(want), state  # as lists: no text is there twice.
        if state.steps_done > 0 and state.chain_legal:  # An illegal step leaves all numbers, and more that is legal.
            assert len(listed) <= task.max_later_steps
            later += bool(listed)
        for tokens, length, text in zip(
            steps.tokens_AL[steps.valid_A], steps.length_A[steps.valid_A], listed, strict=True
        ):
            assert tokens.tolist() == padded(task, task.vocabulary.encode(text)).tolist()
            assert length == len(task.vocabulary.encode(text))
        assert not steps.length_A[~steps.valid_A].any() and not steps.tokens_AL[~steps.valid_A].any()
    assert later


def test_every_puzzle_is_solved_by_a_chain_of_listed_steps():
    """Eight tokens a step are enough: each puzzle has a solution whose every step `legal_steps` lists."""
    task = task_of("game24")
    chosen = puzzles() if FULL else puzzles()[::10]
    chains = [task.solution_texts(" ".join(map(str, numbers)), limit=1)[0].splitlines(True) for numbers in chosen]
    states = [task.build_problem(numbers, 24, 0).state for numbers in chosen]
    for depth in range(3):
        lines = [task.vocabulary.encode(chain[depth]) for chain in chains]
        listed = in_chunks(compiled("game24", "legal_steps"), [(state,) for state in states])
        for line, steps in zip(lines, listed, strict=True):
            assert padded(task, line).tolist() in steps.tokens_AL[steps.valid_A].tolist()
        rows = [(s, padded(task, line), np.int32(len(line))) for s, line in zip(states, lines, strict=True)]
        transitions = list(in_chunks(compiled("game24", "step"), rows))
        states = [transition.state for transition in transitions]
    assert all(transition.reward == 1 for transition in transitions)


@pytest.mark.parametrize("name", ["game24", "game24 long steps"])
@pytest.mark.parametrize("numbers", [(1, 5, 5, 5), (4, 4, 4, 6), (1, 1, 4, 6)])
def test_solutions_are_the_chains_that_the_twin_finds(name, numbers):
    task, want = task_of(name), set()

    def visit(state, chain):
        if state.steps_done == 3:
            want.update([chain] if state.numbers == (24,) else [])
            return
        for text in legal_texts(state.numbers, canonical=True):
            tokens = task.vocabulary.encode(text)
            if len(tokens) <= task.max_step:
                visit(twin_step(task, state, tokens, len(tokens))[0], chain + text)

    visit(TwinState(tuple(map(solver.Fraction, numbers)), 24), "")
    text = " ".join(map(str, numbers))
    found = task.solution_texts(text)
    assert sorted(found) == sorted(want) and found  # as lists: none is there twice.
    assert task.solution_texts(text, limit=1) == found[:1]


def test_a_problem_is_its_sorted_prompt():
    task = task_of("game24")
    problem = task.problem("13 9 4 10", index=7)
    assert task.vocabulary.decode(problem.tokens_P) == "4 9 10 13 -> 24\n"
    assert problem.length == task.max_prompt == 8 and problem.index == 7
    countdown = make_task(ArithmeticConfig(name="countdown", num_numbers=3, max_number=50, max_target=1000))
    assert countdown.vocabulary.decode(countdown.problem("7 3 5 -> 1000").tokens_P) == "3 5 7 -> 1000\n"
    assert (countdown.problem("7 3 5 -> 22").length, countdown.max_prompt) == (7, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4 9 ten", "'ten', which is not a whole number"),
        ("4 9 10", "has 3 numbers"),
        ("4 9 10 14", "out of range"),
        ("0 9 10 13", "out of range"),
        ("", "has 0 numbers"),
        ("4 9 10 13 -> 25", "out of range"),
        ("4 9 10 -13", "'-13', which is not a whole number"),
        ("1 1 1 1", "cannot be made into 24"),
    ],
)
def test_a_bad_puzzle_is_refused_in_one_sentence(text, message):
    with pytest.raises(ProblemError, match=message) as error:
        task_of("game24").problem(text)
    assert repr(text) in str(error.value) and "give" in str(error.value) and "\n" not in str(error.value)


def test_a_bad_config_is_refused():
    with pytest.raises(ValueError, match="did you mean 'game24'.*game24, countdown"):
        make_task(ArithmeticConfig(name="gam24"))
    with pytest.raises(ValueError, match="leave num_numbers"):
        make_task(ArithmeticConfig(num_numbers=3))
    with pytest.raises(ValueError, match="max_number=12 is out of range for game24: give 13 to 24"):
        make_task(ArithmeticConfig(max_number=12))
    with pytest.raises(ValueError, match="max_step_tokens=5 is out of range: give 6 to 39"):
        make_task(ArithmeticConfig(max_step_tokens=5))
    with pytest.raises(ValueError, match="vmap over a batch"):
        task_of("game24").step(task_of("game24").problem("4 9 10 13").state, np.zeros((2, 8), np.int32), 6)


def test_an_augmented_problem_has_the_same_numbers_in_another_order():
    task = make_task(ArithmeticConfig())
    problem = jax.tree.map(jnp.asarray, task.problem("2 4 6 8"))
    keys = jax.random.split(jax.random.key(0), 200)
    augmented = jax.jit(jax.vmap(lambda key: task.augment(problem, key)))(keys)
    texts = {task.vocabulary.decode(tokens.tolist()) for tokens in np.asarray(augmented.tokens_P)}
    assert len(texts) == 24  # every order of four numbers comes up.
    for text, numbers in zip(
        map(task.vocabulary.decode, augmented.tokens_P.tolist()), augmented.state.num_n, strict=True
    ):
        assert text == " ".join(map(str, numbers.tolist())) + " -> 24\n"
        assert sorted(numbers.tolist()) == [2, 4, 6, 8]
