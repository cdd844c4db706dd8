"""The compiled rules against their plain-Python twin, proofs against brute force, and what users may write.

ALPHALLM_FULL=1 checks 100,000 random steps instead of a sample.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.tasks import ProblemError, ProntoqaConfig, make_task
from alphallm.tasks.prontoqa import ontologies, prontoqa, wording

from .prontoqa_twin import closure, derivable, fewest_steps, legal_texts, opposite, twin_problem, twin_step

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_B = 400  # problems that are played at once.
SMALL = ProntoqaConfig(num_train=400, num_validation=60, num_test=60)
CONFIGS = {
    "fictional": SMALL,
    "fictional, longer tests": dataclasses.replace(SMALL, hops=(1, 2), test_hops=(4, 6), distractors="relevant"),
    "fictional, nothing beside": dataclasses.replace(SMALL, distractors="none"),
    "true": dataclasses.replace(SMALL, ontology="true", distractors="relevant", hops=(1, 3, 4), num_train=200),
}
TEXT = wording.EXAMPLE


@functools.cache
def task_of(name="fictional"):
    return make_task(CONFIGS[name])


@functools.cache
def splits_of(name):
    return CONFIGS[name].splits()


@functools.cache
def compiled(name, method):
    return jax.jit(jax.vmap(getattr(task_of(name), method)))


def names_of(name):
    return ontologies.NAMES[CONFIGS[name].ontology]


@functools.cache
def singular_of(name):
    return {plural: noun for noun, plural in names_of(name).concepts.items()}


def all_rows(name):
    return [row for rows in splits_of(name).values() for row in rows]


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def padded(task, tokens):
    row = np.full(task.max_step, task.vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens[: task.max_step]
    return row


def random_step(name, state, proof, rng) -> tuple[list[int], int]:
    """Tokens of a step, legal or not, and a length that is mostly right. `proof` is a right one, answer included."""
    task, kind = task_of(name), rng.randrange(12)
    left = [line for line in proof if line.strip() not in state.known]
    line = left[0]
    if kind in (0, 1):
        line = rng.choice(sorted(legal_texts(state)) or left)
    elif kind == 2:  # something that the problem speaks of, and that as a rule does not follow.
        line = rng.choice([f"{sentence}\n" for rule in state.rules for sentence in (*rule, opposite(rule[1]))])
    elif kind == 3:
        line = rng.choice(["true\n", "false\n"])
    tokens = task.vocabulary.encode(line)
    at = rng.randrange(len(tokens))
    if kind == 4:
        tokens[at] = rng.randrange(task.vocabulary.size)
    elif kind == 5:
        del tokens[at]
    elif kind == 6 and rng.random() < 0.5:
        return tokens, rng.choice([-1, 0, 1, len(tokens) - 1, len(tokens) + 1, task.max_step, task.max_step + 1])
    return tokens, len(tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_steps_are_judged_as_the_twin_does(name):
    task, rng, seen, count = task_of(name), random.Random(0), collections.Counter(), 0
    rows = rng.choices(all_rows(name), k=_B)
    proofs = [task.solution_texts(row)[0].splitlines(keepends=True) for row in rows]
    problems = [task.problem(row).state for row in rows]
    predicates = [*names_of(name).concepts, *names_of(name).adjectives]
    while count < (100_000 if FULL else 3000):
        states, got = [twin_problem(row, singular_of(name)) for row in rows], stacked(problems)
        for _ in range(task.max_steps + 1):
            steps = [random_step(name, *pair, rng) for pair in zip(states, proofs, strict=True)]
            tokens_BL = np.stack([padded(task, tokens) for tokens, _ in steps])
            lengths = np.array([length for _, length in steps], np.int32)
            said = jax.device_get(compiled(name, "step")(got, tokens_BL, lengths))
            got = said.state
            for b, state in enumerate(states):
                new, legal, reward, done = twin_step(task, state, tokens_BL[b], lengths[b])
                told = (bool(said.legal[b]), float(said.reward[b]), bool(said.done[b]))
                assert told == (legal, reward, done), (rows[b], state, steps[b])
                known = {
                    wording.Sentence(state.query.split()[0], predicates[q // 2], q % 2 == 0).write(names_of(name))
                    for q in np.flatnonzero(got.known_q[b])
                }
                here = (known, got.steps_done[b], got.chain_legal[b], got.done[b])
                assert here == (new.known, new.steps_done, new.chain_legal, new.done)
                assert task.vocabulary.words[got.reference[b]] == new.right
                seen.update(
                    legal=legal, illegal=not legal and not state.done, rewarded=reward > 0, over=state.done,
                    unproved=legal and done and new.chain_legal and not reward,
                )  # fmt: skip
                states[b] = new
            count += len(rows)
    assert min(seen.values()) > 0.01 * count and len(seen) == 5, seen


@pytest.mark.parametrize("name", ["fictional", "true"])
def test_legal_steps_lists_what_the_twin_lists(name):
    task, rng, states, problems = task_of(name), random.Random(1), [], []
    vocabulary = task.vocabulary
    for row in rng.choices(all_rows(name), k=_B):
        state, problem = twin_problem(row, singular_of(name)), task.problem(row).state
        for _ in range(rng.randrange(4)):
            line = rng.choice(sorted(legal_texts(state)) or ["true\n"])
            tokens = vocabulary.encode(line)
            problem = one_step(name)(problem, padded(task, tokens), len(tokens)).state
            state, *_ = twin_step(task, state, tokens, len(tokens))
        states.append(state)
        problems.append(jax.device_get(problem))
    steps = jax.device_get(compiled(name, "legal_steps")(stacked(problems)))
    for b, state in enumerate(states):
        listed = [
            vocabulary.decode(tokens[:length])
            for tokens, length, valid in zip(steps.tokens_AL[b], steps.length_A[b], steps.valid_A[b], strict=True)
            if valid
        ]
        assert sorted(listed) == sorted(legal_texts(state))  # as lists: no text is there twice.
        assert not steps.tokens_AL[b][~steps.valid_A[b]].any()


@functools.cache
def one_step(name):
    return jax.jit(task_of(name).step)


def run(text, answer, name="fictional"):
    """(legal, reward, done) of each line of an answer."""
    task, judged = task_of(name), []
    state = task.problem(text).state
    for line in answer.splitlines(keepends=True):
        tokens = task.vocabulary.encode(line)
        said = one_step(name)(state, padded(task, tokens), len(tokens))
        judged.append((bool(said.legal), float(said.reward), bool(said.done)))
        state = said.state
    return judged


def test_an_answer_is_worth_something_with_its_proof_alone():
    first, second = "stella is a tumpus .\n", "stella is not red .\n"
    assert run(TEXT, first + second + "false\n") == [(True, 0, False), (True, 0, False), (True, 1, True)]
    assert run(TEXT, first + second + "true\n")[-1] == (True, 0, True)
    assert run(TEXT, first + "false\n")[-1] == run(TEXT, "false\n")[-1] == (True, 0, True)
    # A step that does not follow, or not yet, or is known: the proof is spoilt for good, and goes on.
    for spoilt in (second, "stella is a wumpus .\n", "stella is red .\n", "every wumpus is a tumpus .\n", "\n"):
        assert run(TEXT, spoilt + first + second + "false\n") == [
            (False, 0, False), (True, 0, False), (True, 0, False), (True, 0, True),
        ]  # fmt: skip
    assert run(TEXT, first * 2 + second + "false\n")[1] == (False, 0, False)
    assert run(TEXT, first + second + "false\n" + "false\n")[-1] == (False, 0, True)
    assert run(TEXT, first * 7 + "true\n")[-1] == (True, 0, True)
    assert run(TEXT, first * 8 + "true\n")[-2:] == [(False, 0, True), (False, 0, True)]


def test_rules_that_say_the_same_are_one_step():
    text = TEXT.replace("tumpuses are", "each wumpus is a tumpus . all wumpuses are tumpuses . tumpuses are")
    steps = task_of().legal_steps(task_of().problem(text).state)
    listed = [
        task_of().vocabulary.decode(tokens) for tokens in np.asarray(steps.tokens_AL[np.flatnonzero(steps.valid_A)])
    ]
    assert listed == ["stella is a tumpus .\n", "true\n", "false\n"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_problem_has_one_answer_and_its_proof_is_shortest(name):
    task, config = task_of(name), CONFIGS[name]
    for split, rows in splits_of(name).items():
        lengths = (config.test_hops if split == "test" else ()) or config.hops
        answers = collections.Counter()
        for place, row in enumerate(rows):
            state = twin_problem(row, singular_of(name))  # which looks that one of the two follows, and the other not.
            (text,) = task.solution_texts(row)
            *proof, answer = text.splitlines()
            for sentence in proof:
                assert sentence in derivable(state), row
                state = dataclasses.replace(state, known=state.known | {sentence})
            start = twin_problem(row, singular_of(name))
            assert len(proof) == fewest_steps(start) == lengths[place % len(lengths)]
            assert proof[-1] in (state.query, opposite(state.query)) and answer == start.right
            # With distractors there is a rule for either answer, of which one never applies.
            said = {consequent for _, consequent in state.rules} & {state.query, opposite(state.query)}
            assert len(said) == (1 if config.distractors == "none" else 2)
            answers[answer] += 1
        assert min(answers.values()) > 0.3 * len(rows) and len(answers) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_branches_lead_off_the_way(name):
    """At most two concepts have two parents (one at the end of its chain only the new one), of which one leads on."""
    numbers = []
    for row in all_rows(name):
        state = twin_problem(row, singular_of(name))
        parents = collections.defaultdict(set)
        for antecedent, consequent in state.rules:
            if " is a" in consequent and consequent.split()[-2] in names_of(name).concepts:
                parents[antecedent].add(consequent)
        forks = [each for each in parents.values() if len(each) > 1]
        numbers.append(len(forks))
        for fork in forks:
            assert sum(bool({state.query, opposite(state.query)} & closure(state.rules, {each})) for each in fork) <= 1
    branches = CONFIGS[name].distractors == "branches"
    assert {*numbers} == ({0, 1, 2} if branches else {0}) and (np.mean(numbers) > 0.7) == branches


@pytest.mark.parametrize("name", CONFIGS)
def test_no_problem_is_in_two_splits_whatever_its_wording(name):
    def key(row):
        state = twin_problem(row, singular_of(name))
        entity = state.query.split()[0] + " "
        unnamed = lambda sentence: sentence.removeprefix(entity)
        rules = frozenset((unnamed(a), unnamed(b)) for a, b in state.rules)
        return rules, frozenset(map(unnamed, state.known)), unnamed(state.query).replace("not ", "")

    keys = [key(row) for row in all_rows(name)]
    assert len({*keys}) == len(keys) >= 300
    # Nor is one where the seed is another; and validation is drawn as train is.
    other = dataclasses.replace(CONFIGS[name], seed=1).splits()
    mine = splits_of(name)
    assert not {key(row) for row in mine["test"]} & {key(row) for row in other["train"]}
    assert {*mine["test"]} != {*other["test"]}
    lengths = [collections.Counter(len(row.split()) // 20 for row in mine[split]) for split in ("train", "validation")]
    assert {*lengths[1]} <= {*lengths[0]}


def test_a_problem_is_written_in_one_way():
    task = task_of()
    for row in splits_of("fictional")["train"][:50]:
        problem = task.problem(row, index=3)
        assert task.vocabulary.decode(problem.tokens_P[: problem.length]) == row + "\n" and problem.index == 3
    loose = "Every wumpus is tumpus. Tumpuses are not red.\nStella is an wumpus. True or false: Stella is red?"
    np.testing.assert_array_equal(task.problem(loose).tokens_P, task.problem(TEXT).tokens_P)
    true = make_task(CONFIGS["true"])
    two_words = "Painted ladies are butterflies. Fae is a painted lady. True or false: Fae is a butterfly."
    assert true.solution_texts(two_words) == ["fae is a butterfly .\ntrue\n"]
    number = "Each prime number is a natural number. 7 is a prime number. True or false: 7 is not a natural number."
    assert true.solution_texts(number) == ["7 is a natural-number .\nfalse\n"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no premises before 'true or false :': give a problem like"),
        ("true or false : stella is red .", "has no premises before"),
        ("every wumpus is a tumpus . stella is a wumpus .", "has no premises before"),
        (TEXT.replace("every wumpus is a tumpus", "wumpus tumpus"), "'wumpus tumpus' is no sentence of this task"),
        (TEXT.replace("tumpus .", "tumpus"), "is no sentence of this task"),
        (TEXT.replace("wumpus", "cat"), r"'every cat is a tumpus' speaks of nothing that this task knows \(fictional"),
        (TEXT.replace("every wumpus is", "every wumpus are"), "speaks of nothing that this task knows"),
        (TEXT.replace("every wumpus is", "wumpus are"), "speaks of nothing that this task knows"),
        (TEXT.replace("stella", "bob"), "'bob is a wumpus' speaks of nothing"),
        (TEXT.replace("red", "pink"), "'tumpuses are not pink' says nothing that this task knows"),
        (TEXT.replace("false : stella", "false : fae"), "is not about one that its premises speak of"),
        (TEXT.replace("stella is a wumpus . ", ""), "is not about one that its premises speak of"),
        (TEXT.replace("stella is red", "tumpuses are red"), "is not about one that its premises speak of"),
        (TEXT.replace("stella is red", "stella is blue"), "has no answer: neither what it asks nor the opposite"),
        (TEXT.replace("are not red .", "are not red . wumpuses are red ."), "has no answer: both what it asks and"),
        (TEXT.replace("stella is red", "stella is a wumpus"), "gives what it asks: ask what takes a rule"),
        ("wumpuses are red . " * 24 + TEXT, "has 27 premises: this task allows 24"),
    ],
)  # fmt: skip
def test_a_bad_problem_is_refused_in_one_sentence(text, message):
    with pytest.raises(ProblemError, match=message) as error:
        task_of().problem(text)
    assert "\n" not in str(error.value)


def test_a_proof_that_is_too_long_is_refused():
    chain = ["wumpus", "yumpus", "zumpus", "dumpus", "rompus", "numpus", "tumpus", "vumpus", "jompus"]
    links = [f"every {a} is a {b} . " for a, b in itertools.pairwise(chain)]
    text = f"{''.join(links)}max is a wumpus . true or false : max is a {{}} ."
    assert task_of().problem(text.format("vumpus"))
    with pytest.raises(ProblemError, match=r"has 8 steps: with the answer, this task allows 8 \(max_steps\)"):
        task_of().problem(text.format("jompus"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ontology": "fictive"}, "Unknown ontology 'fictive': did you mean 'fictional'"),
        ({"distractors": "branch"}, "Unknown distractors 'branch': did you mean 'branches'"),
        ({"ontology": "true"}, "no branches: give distractors=relevant"),
        ({"hops": ()}, "give numbers from 1 to 7"),
        ({"hops": (0, 1)}, "give numbers from 1 to 7"),
        ({"test_hops": (8,)}, "give numbers from 1 to 7"),
        ({"hops": (12,), "max_steps": 20}, "give numbers from 1 to 10"),
        ({"max_premises": 12}, "max_premises is 12: so many hops need 21 or more"),
        ({"num_test": 0}, "num_test is 0: give 1 or more"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProntoqaConfig(**fields)


def test_there_are_fewer_problems_where_names_are_few():
    config = dataclasses.replace(CONFIGS["true"], hops=(1, 9), max_steps=10, num_test=5000)
    lengths = collections.Counter(
        fewest_steps(twin_problem(row, singular_of("true"))) for row in config.splits()["test"]
    )
    assert 5000 > lengths[1] > 5 * lengths[9] > 0 and len(lengths) == 2


def families_in(text):
    families = names_of("fictional").families
    return sorted(i for word in text.split() for i, family in enumerate(families) if word in family)


@pytest.mark.parametrize("name", ["fictional", "true"])
def test_an_augmented_problem_is_the_same_under_other_names(name):
    task = task_of(name)
    rows = splits_of(name)["train"][:_B]
    problems = stacked([task.problem(row) for row in rows])
    keys = jax.random.split(jax.random.key(0), len(rows))
    augmented = jax.device_get(jax.jit(jax.vmap(task.augment))(problems, keys))
    for b, row in enumerate(rows):
        one = jax.tree.map(lambda x, b=b: x[b], augmented)
        text = task.vocabulary.decode(one.tokens_P).rstrip("\n")
        assert text != row
        again = task.problem(text)
        np.testing.assert_array_equal(again.tokens_P, one.tokens_P)
        for field in ("known_q", "entity", "query", "reference"):
            np.testing.assert_array_equal(getattr(again.state, field), getattr(one.state, field))
        rules = [sorted(zip(x.state.subject_r.tolist(), x.state.literal_r.tolist(), strict=True)) for x in (again, one)]
        assert rules[0] == rules[1]
        old, new = (twin_problem(each, singular_of(name)) for each in (row, text))
        assert fewest_steps(old) == fewest_steps(new) and len(old.rules) == len(new.rules)
        if name == "fictional":  # Adjectives stay in their families.
            assert families_in(text) == families_in(row)
    many = jax.random.split(jax.random.key(1), _B)
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), problems)
    tokens = jax.device_get(jax.jit(jax.vmap(functools.partial(task.augment, one)))(many)).tokens_P
    assert len({tuple(row.tolist()) for row in tokens}) > 0.9 * _B


FILE = {
    "example1": {
        "in_context_example0": {"question": "Wumpuses are red.", "query": "True or false: Max is red."},
        "test_example": {
            "question": "Each jompus is not shy. Jompuses are yumpuses. Every yumpus is an impus. Impuses are opaque. "
            "Numpuses are not opaque. Max is a jompus.",
            "query": "True or false: Max is opaque.",
            "chain_of_thought": ["Max is a jompus.", "Jompuses are yumpuses.", "Max is a yumpus."],
            "answer": "True",
        },
    },
    "example2": {},
}


def test_a_file_of_prontoqa_is_a_problem():
    inner = FILE["example1"]["test_example"]
    texts = {task_of().from_file(json.dumps(what)) for what in (FILE, FILE["example1"], inner)}
    (text,) = texts
    assert text.endswith("max is a jompus . true or false : max is opaque .")
    assert task_of().solution_texts(text) == ["max is a yumpus .\nmax is an impus .\nmax is opaque .\ntrue\n"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The file is no JSON"),
        ("{", "The file is no JSON"),
        ("[]", "no example that could be read: give PrOntoQA's own JSON"),
        ("{}", "no example that could be read"),
        ('{"example1": {"test_example": 3}}', "no example that could be read"),
        ('{"question": "wumpuses are red.", "query": 1}', "no example that could be read"),
        (
            '{"question": "Wumpuses are red. Max is a wumpus.", "query": "Prove: Max is red."}',
            "before 'true or false :'",
        ),
        ('{"question": "Wumpuses red. Max is a wumpus.", "query": "True or false: Max is red."}', "is no sentence"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(text, message):
    with pytest.raises(ProblemError, match=message) as error:
        task_of().from_file(text)
    assert "\n" not in str(error.value)


def test_a_split_without_problems_is_told(monkeypatch):
    monkeypatch.setattr(prontoqa, "split_of", lambda key: "train")
    monkeypatch.setattr(prontoqa, "_MISSES", 20)
    with pytest.raises(UserError, match="There are no validation problems of"):
        ProntoqaConfig(num_train=5).splits()
