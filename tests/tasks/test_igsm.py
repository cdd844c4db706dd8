"""iGSM against its plain-Python twin. ALPHALLM_FULL=1 checks 100,000 random steps instead of a sample."""

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
from alphallm.tasks import IgsmConfig, ProblemError, make_task
from alphallm.tasks.igsm import drawing, wording
from alphallm.tasks.igsm.igsm import split_of

from .igsm_twin import Reading, TwinState, device_state, is_done, name_of, same, text_of, twin_step

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_CHUNK = 1024
SMALL = IgsmConfig(
    min_ops=2, max_ops=6, test_ops=(3, 9), max_sentences=8, train_problems=200, validation_problems=30, test_problems=40
)
CONFIGS = {
    "small": SMALL,
    "without BACK": dataclasses.replace(SMALL, back=False),
    "modulo 5": dataclasses.replace(SMALL, modulus=5, max_sentences=6, test_ops=(2, 6), extra_steps=1),
    "with retries": dataclasses.replace(SMALL, retry_rate=0.4),
}
STORY = (
    "Film Tote equals 2 times Film Daypack . Dance Tote equals 9 . Film Daypack equals 5 . Dance Daypack equals "
    "4 more than difference of Film Backpack and Dance Tote . Tote Ruler equals sum of Dance Tote and Film Tote . "
    "how many Dance Backpack ?"
)


@functools.cache
def task_of(name):
    return make_task(CONFIGS[name])


@functools.cache
def splits_of(name):
    return CONFIGS[name].splits()


def rows_of(name) -> list[str]:
    return [row for rows in splits_of(name).values() for row in rows]


@functools.cache
def reading_of(name, row) -> Reading:
    return Reading(row, CONFIGS[name].modulus)


@functools.cache
def first_state(name, row):
    return task_of(name).problem(row).state


@functools.cache
def compiled(name):
    return jax.jit(jax.vmap(task_of(name).step))


def steps(name, states, tokens, lengths):
    """The transitions of lists of device states, tokens and lengths, as numpy arrays."""
    transitions = []
    for start in range(0, len(states), _CHUNK):
        rows = list(zip(states[start : start + _CHUNK], tokens[start:], lengths[start:], strict=False))
        filled = rows + rows[:1] * (_CHUNK - len(rows))
        result = jax.device_get(compiled(name)(*jax.tree.map(lambda *leaves: np.stack(leaves), *filled)))
        transitions += [jax.tree.map(lambda x, i=i: x[i], result) for i in range(len(rows))]
    return transitions


def padded(task, tokens):
    row = np.full(task.max_step, task.vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens[: task.max_step]
    return row


def misread(rng, line: str) -> str:
    """A line with another number or operation."""
    words = line.split()
    at = rng.randrange(3, len(words))
    words[at] = rng.choice("+-*") if words[at] in "+-*" else "=" if words[at] == "=" else str(rng.randrange(5))
    return " ".join(words) + "\n"


def some_line(rng, reading: Reading, state: TwinState) -> str:
    """A step in words that is as a rule legal, most often right and needed, so that chains end in an answer."""
    ready, needed = reading.ready(state.lines), reading.needed()
    useful = [name for name in ready if name in needed]
    kind = rng.random()
    if kind < 0.1:
        return "BACK\n"
    if kind < 0.15:
        return reading.right(rng.choice(reading.names))
    name = rng.choice(useful if useful and kind < 0.85 else ready or reading.names)
    line = rng.choice(sorted(reading.right_lines(name)))
    return misread(rng, line) if rng.random() < 0.07 else line


def random_case(name, rng) -> tuple[str, TwinState, np.ndarray, np.int32]:
    """A state on the way, sometimes just before its end, and a step that is legal or nearly so."""
    task, row = task_of(name), rng.choice(rows_of(name))
    reading, state, before = reading_of(name, row), TwinState(), TwinState()
    moves = rng.choice([rng.randrange(task.max_steps), task.max_steps])
    for _ in range(moves):
        before = state
        state = twin_step(task.config, reading, state, some_line(rng, reading, state))[0]
        if is_done(task.config, reading, state):
            break
    if is_done(task.config, reading, state) and rng.random() < 0.9:
        state = before
    line = reading.right(reading.asked) if rng.random() < 0.4 else some_line(rng, reading, state)
    tokens, kind = task.vocabulary.encode(line), rng.randrange(8)
    at, length = rng.randrange(len(tokens)), len(tokens)
    if kind == 0:
        tokens[at] = rng.randrange(task.vocabulary.size)
    elif kind == 1:
        length = rng.randrange(-1, task.max_step + 2)
    elif kind == 2:
        del tokens[at]
        length = len(tokens)
    token_row = padded(task, tokens)
    if rng.random() < 0.5:  # what follows the step is not looked at.
        token_row[max(length, 0) :] = rng.randrange(task.vocabulary.size)
    return row, state, token_row, np.int32(length)


@pytest.mark.parametrize("name", ["small", "without BACK", "modulo 5"])
def test_a_step_is_judged_as_the_twin_does(name):
    task, rng = task_of(name), random.Random(1)
    cases = [random_case(name, rng) for _ in range(100_000 if FULL else _CHUNK)]
    states = [device_state(task, first_state(name, row), state) for row, state, _, _ in cases]
    seen = collections.Counter()
    for start in range(0, len(cases), _CHUNK):  # not all at once: a transition is a few kilobytes.
        some = slice(start, start + _CHUNK)
        got = steps(name, states[some], [case[2] for case in cases[some]], [case[3] for case in cases[some]])
        for (row, state, token_row, length), said in zip(cases[some], got, strict=True):
            text = text_of(task, token_row, length)
            new, legal, reward, done = twin_step(task.config, reading_of(name, row), state, text)
            assert (bool(said.legal), float(said.reward), bool(said.done)) == (legal, reward, done), (row, state, text)
            assert same(said.state, device_state(task, first_state(name, row), new)), (row, state, text)
            seen.update(legal=legal, illegal=not legal, right=reward > 0)
            seen.update(wrong=done and legal and not reward, back=text == "BACK\n", over=not legal and done)
    assert min(seen.values()) > 0.015 * len(cases), seen


@pytest.mark.parametrize("name", ["small", "modulo 5"])
def test_ops_and_what_is_needed_are_as_a_reader_finds_them(name):
    for split, rows in splits_of(name).items():
        low, high = CONFIGS[name].ops(split)
        for row in rows:
            story, reading = task_of(name).parse(row), reading_of(name, row)
            assert story.ops == reading.ops() and low <= story.ops <= high
            assert {" ".join(each) for each in story.needed} == reading.needed()
            assert {" ".join(each) for each in story.chains} == {*reading.names}
            assert wording.write(story) == row
    extra = [len(reading_of(name, row).names) - len(reading_of(name, row).needed()) for row in rows_of(name)]
    assert sum(count > 0 for count in extra) > 0.8 * len(extra)


def test_counts_of_operations_are_those_of_the_paper():
    """Its figure 1, in which four numbers are taken over or come of one operation, one step has two: 7 in all."""
    text = (
        "Riverview Film equals 5 times sum of Film Backpack and Dance Daypack . Film Daypack equals sum of Dance "
        "Daypack and Central Film . Film Satchel equals 13 . Central Film equals sum of Dance Daypack and Film Satchel "
        ". Riverview Dance equals sum of Film Daypack and Film Satchel . Dance Daypack equals 17 . "
        "Central Dance equals sum of Film Satchel and Dance Daypack . how many {} ?"
    )
    for asked, ops in (("Dance Daypack", 1), ("Central Film", 3), ("Film Daypack", 4), ("Film Backpack", 5)):
        assert task_of("small").parse(text.format(asked)).ops == ops
    assert task_of("small").parse(text.format("Riverview Film")).ops == 7  # 5, and the step of two operations.


def test_a_problem_is_worked_through():
    task = task_of("small")
    (text, *others) = task.solution_texts(STORY)
    lines = {
        "Film Daypack = 5", "Film Tote = 5 * 2 = 10", "Dance Tote = 9", "Film Backpack = 10 + 5 = 15",
        "Dance Daypack = 15 - 9 = 6 + 4 = 10", "Dance Backpack = 9 + 10 = 19",
    }  # fmt: skip
    for each in (text, *others):
        assert {*each.splitlines()} == lines and each.endswith("Dance Backpack = 9 + 10 = 19\n")
    assert task.parse(STORY).ops == 7
    assert task.unneeded(STORY, text) == 0
    assert task.unneeded(STORY, "Dance Tote = 9\nTote Ruler = 2\nBACK\nFilm Daypack = 5\nTote Ruler = 3\n") == 1


@pytest.mark.parametrize("name", ["small", "without BACK", "modulo 5"])
def test_solutions_are_right_and_the_shortest(name):
    orders = 0
    for row in rows_of(name):
        reading, texts = reading_of(name, row), task_of(name).solution_texts(row)
        assert texts == task_of(name).solution_texts(row) and len({*texts}) == len(texts)
        orders += len(texts) > 1
        for text in texts:
            said = play(name, row, text)
            assert [legal for _, legal, _, _ in said] == [True] * len(said)
            assert [reward for _, _, reward, _ in said] == [0.0] * (len(said) - 1) + [1.0]
            assert len(said) == len(reading.needed())  # each has to be there: none can be computed without the others.
    assert orders > 0.1 * len(rows_of(name))


def test_what_is_added_up_may_come_in_any_order():
    texts = {
        "Film Daypack = 5\nFilm Tote = 5 * 2 = 10\nFilm Backpack = 5 + 10 = 15\nDance Tote = 9\n"
        "Dance Daypack = 15 - 9 = 6 + 4 = 10\nDance Backpack = 10 + 9 = 19\n": 1.0,
        "Film Daypack = 5\nFilm Tote = 2 * 5 = 10\nFilm Backpack = 5 + 10 = 15\nDance Tote = 9\n"
        "Dance Daypack = 15 - 9 = 6 + 4 = 10\nDance Backpack = 10 + 9 = 19\n": 0.0,
    }
    task = task_of("small")
    for text, want in texts.items():
        state = task.problem(STORY).state
        for line in text.splitlines(keepends=True):
            tokens = task.vocabulary.encode(line)
            (said,) = steps("small", [state], [padded(task, tokens)], [np.int32(len(tokens))])
            state = said.state
        assert (said.legal, said.done, said.reward) == (True, True, want)
    chain = [("", 1), ("+", 2), ("+", 3)]
    lines = wording.Story({("Film", "Tote"): chain}, ("Film", "Tote")).lines(23)["Film", "Tote"]
    assert len(lines) == wording.MOST_LINES and lines[0] == "Film Tote = 1 + 2 = 3 + 3 = 6\n"


def play(name, row, text):
    state, said = TwinState(), []
    for line in text.splitlines(keepends=True):
        said.append(twin_step(CONFIGS[name], reading_of(name, row), state, line))
        state = said[-1][0]
    return said


def test_retries_are_mistakes_that_are_taken_back():
    name, seen = "with retries", collections.Counter()
    task = task_of(name)
    for row in rows_of(name):
        reading = reading_of(name, row)
        plain = {*task_of("small").solution_texts(row)}
        for text in task.solution_texts(row):
            said, lines = play(name, row, text), text.splitlines(keepends=True)
            assert len(lines) <= task.max_steps and all(legal for _, legal, _, _ in said) and said[-1][2] == 1.0
            assert said[-1][0].lines == tuple(lines[i] for i in range(len(lines)) if "BACK\n" not in lines[i : i + 2])
            assert len(said[-1][0].lines) == len(reading.needed())
            for i in range(len(lines) - 1):
                if lines[i + 1] == "BACK\n":
                    unneeded = name_of(lines[i]) not in reading.needed()
                    assert unneeded == (lines[i] == reading.right(name_of(lines[i])))
                    seen.update(unneeded=unneeded, wrong=not unneeded)
            seen.update(steps=len(reading.needed()), plain=text in plain, texts=1)
    # Of steps, 0.4 / 0.6 mistakes; fewer before the answer, and where there is no more room.
    assert 0.4 < (seen["unneeded"] + seen["wrong"]) / seen["steps"] < 0.67, seen
    assert min(seen["unneeded"], seen["wrong"]) > 0.1 * seen["steps"] and 0 < seen["plain"] < 0.3 * seen["texts"]


@pytest.mark.parametrize("name", ["small", "modulo 5"])
def test_no_template_is_in_two_splits(name):
    config, task, splits = CONFIGS[name], task_of(name), splits_of(name)
    sizes = {split: getattr(config, f"{split}_problems") for split in splits}
    assert {split: len({*rows}) for split, rows in splits.items()} == sizes
    templates = {split: {drawing.template(task.parse(row)) for row in rows} for split, rows in splits.items()}
    assert not templates["train"] & templates["validation"] and not templates["test"] & (
        templates["train"] | templates["validation"]
    )
    # Of other operations or another seed neither: a test's problem is never trained on.
    other = dataclasses.replace(config, seed=1, max_ops=5, test_ops=(2, 5)).splits()
    assert {*other["train"]} != {*splits["train"]}
    for split, rows in other.items():
        assert {split_of(task.parse(row)) for row in rows} == {split}
    counts = collections.Counter(task.parse(row).ops for row in splits["train"])
    assert [*sorted(counts)] == [*range(config.min_ops, config.max_ops + 1)]
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_template_forgets_names_numbers_orders_and_extras():
    story = task_of("small").parse(STORY)
    want = drawing.template(story)
    assert want in {drawing.template(story) for _ in range(2)}
    same_ones = [
        STORY.replace("2 times", "17 times").replace("equals 9", "equals 0"),
        STORY.replace("Tote", "X")
        .replace("Daypack", "Tote")
        .replace("X", "Daypack")
        .replace("Daypack Rul", "Tote Rul"),
        STORY.replace("Dance Tote equals 9 . ", "").replace(" . how", " . Dance Tote equals 9 . how"),
        STORY.replace("Tote Ruler equals sum of Dance Tote and Film Tote . ", ""),
    ]
    others = [
        STORY.replace("2 times", "2 more than"),
        STORY.replace("difference", "sum"),
        STORY.replace("Film Backpack and Dance Tote", "Dance Tote and Film Backpack"),
        STORY.replace("how many Dance Backpack", "how many Dance Daypack"),
        STORY.replace(" . how", " . Dance Satchel equals 1 . how"),
    ]
    for text, equal in (*((text, True) for text in same_ones), *((text, False) for text in others)):
        assert text != STORY and (drawing.template(task_of("small").parse(text)) == want) == equal, text


def test_generated_splits_never_change():
    """Published numbers stand on them. New values: print the digests, and raise the config's `version`."""
    want = {"small": "3bdf4160ee02", "modulo 5": "2b7cdaf4527b"}
    got = {name: hashlib.sha256(repr(splits_of(name)).encode()).hexdigest()[:12] for name in want}
    assert got == want


def test_many_operations_are_possible():
    """As many as the paper trains and tests with."""
    config = IgsmConfig(
        max_ops=15, test_ops=(20, 21), max_sentences=20, train_problems=14, validation_problems=3, test_problems=4
    )
    task, splits = make_task(config), config.splits()
    assert [task.parse(row).ops for row in splits["test"]] == [20, 21] * 2
    for row in (*splits["train"], *splits["test"]):
        assert task.problem(row).length <= task.max_prompt
        assert all(len(text.splitlines()) == len(task.parse(row).needed) for text in task.solution_texts(row))


def test_a_renamed_problem_keeps_its_values():
    task, row = task_of("small"), splits_of("small")["train"][0]
    problem = task.problem(row)
    texts = set()
    for seed in range(20):
        renamed = jax.device_get(task.augment(problem, jax.random.key(seed)))
        text = task.vocabulary.decode(renamed.tokens_P[: renamed.length]).strip()
        again = task.problem(text)
        assert same(renamed.state, again.state)
        pairs = [(a, b) for a, b in zip(row.split(), text.split(), strict=True) if a in wording.CATEGORY_OF]
        assert all(wording.CATEGORY_OF[a] == wording.CATEGORY_OF[b] for a, b in pairs)
        texts.add(text)
    assert len(texts) > 10


def test_the_text_may_be_written_freely():
    task = task_of("small")
    written = "  " + STORY.replace(" . ", ".\n").replace(" ?", "?")
    np.testing.assert_array_equal(task.problem(written).tokens_P, task.problem(STORY).tokens_P)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("how many Dance Backpack ?", "", "does not end with a question: give a problem like"),
        ("how many Dance Backpack ?", "how many Dance ?", "does not end with a question"),
        ("equals 5", "is 5", "'Film Daypack is 5' says of no parameter what it equals: give a problem like"),
        ("equals 5", "equals five", "'Film Daypack equals five' says of no parameter"),
        ("2 times", "2 times 3 times", "says of no parameter"),
        ("equals 5", "equals 23", "'23' is no number of a problem: give one from 0 to 22"),
        ("equals 5", "equals 05", "'05' is no number"),
        ("equals 5", "equals ٣", "'٣' is no number"),
        ("Film Daypack equals", "Daypack Film equals", "'Daypack Film' is no parameter that a sentence can be ab"),
        ("Film Daypack equals", "Film Backpack equals", "'Film Backpack' is no parameter that"),
        ("Film Daypack equals", "Film Tote equals", "'Film Tote' has two sentences: give each parameter one"),
        ("how many Dance", "how many Lakeside", "Nothing says how many 'Lakeside Backpack' is: give a sentence for it"),
        ("times Film Daypack", "times Film Satchel", "Nothing says how many 'Film Satchel' is"),
        ("equals 5", "equals Film Tote", "goes round in a circle, Film .*: let each depend on others alone"),
        ("equals 5", "equals Film Backpack", "goes round in a circle"),
        ("equals 9", "equals Dance Tote", "goes round in a circle, Dance Tote , Dance Tote"),
        ("how", "Film Rucksack equals 1 . Film Satchel equals 2 . how", "Film has more than 3 things: leave some"),
        ("how", "".join(f"Ruler{i} Tote equals 1 . " for i in "ab") + "how", "is no parameter that a sentence can"),
        (
            "how",
            "".join(f"{school} Film equals 1 . " for school in wording.CATEGORIES["School"]) + "how",
            "has 9 sentences: this task allows 8 .max_sentences",
        ),
    ],
)  # fmt: skip
def test_a_bad_problem_is_refused_in_one_sentence(old, new, message):
    text = STORY.replace(old, new)
    assert text != STORY
    with pytest.raises(ProblemError, match=message) as error:
        task_of("small").problem(text)
    told = str(error.value)
    assert "\n" not in told and len(told) < 250
    if "a problem like" in told:  # what is told to be right is.
        task_of("small").problem(told.rpartition("like ")[2].strip("'"))


def test_a_problem_of_too_many_steps_is_refused():
    task = make_task(IgsmConfig(max_ops=2, test_ops=(2, 2), extra_steps=1))
    with pytest.raises(ProblemError, match="takes 6 steps: this task allows 3 .the most operations and extra_steps"):
        task.problem(STORY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_ops": 0}, "min_ops is 0: give 1 or more"),
        ({"min_ops": 9}, "train problems have 9 to 8 operations: give 1 or more, in this order"),
        ({"test_ops": (0, 3)}, "test problems have 0 to 3 operations"),
        ({"max_sentences": 37}, "max_sentences is 37: give a number from 1 to 36"),
        ({"modulus": 1}, "modulus is 1: give a number from 2"),
        ({"extra_steps": -1}, "extra_steps is -1"),
        ({"retry_rate": 1.0}, "retry_rate is 1.0: give a number from 0 to 0.9"),
        ({"retry_rate": 0.1, "back": False}, "retry_rate is 0.1, which needs the step BACK: set back=True"),
        ({"test_problems": 0}, "test_problems is 0"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        IgsmConfig(**fields)


def test_too_many_problems_are_refused():
    config = IgsmConfig(min_ops=1, max_ops=1, max_sentences=1, train_problems=3000)
    with pytest.raises(UserError, match="of 3000 train problems no new ones of 1 to 1 operations are found: lower tra"):
        config.splits()
