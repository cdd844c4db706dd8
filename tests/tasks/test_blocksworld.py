"""The compiled rules against their plain-Python twin, the planner against brute force, and what users may write.

ALPHALLM_FULL=1 checks 100,000 random steps instead of 2,000, and all problems of four blocks.
"""

import functools
import itertools
import os
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.tasks import BlocksworldConfig, ProblemError, make_task
from alphallm.tasks.blocksworld import planner, wording
from alphallm.tasks.data import load_problems
from alphallm.training.actor import random_play

from .blocksworld_twin import (
    COLOURS,
    TwinState,
    all_actions,
    device_facts,
    device_state,
    legal_texts,
    random_facts,
    successors,
    told,
    twin_step,
)

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_CHUNK = 1000
CONFIG = BlocksworldConfig()
STATES = BlocksworldConfig(states=True)
SMALL = BlocksworldConfig(num_blocks=(3, 5), test_plan=(6, 12), num_test=60)  # test plans are longer.
SUSSMAN = "orange on red , red on table , blue on table . goal : red on blue , blue on orange ."


@functools.cache
def task_of(config=CONFIG):
    return make_task(config)


@functools.cache
def compiled(task, method):
    return jax.jit(jax.vmap(getattr(task, method)))


@functools.cache
def small_splits():
    return SMALL.splits()


def in_chunks(function, rows):
    """The results, one a row, of a compiled function of stacked rows, whose last chunk is filled with the first row."""
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        filled = chunk + rows[:1] * (_CHUNK - len(chunk))
        result = jax.device_get(function(*jax.tree.map(lambda *leaves: np.stack(leaves), *filled)))
        yield from (jax.tree.map(lambda x, i=i: x[i], result) for i in range(len(chunk)))


def padded(task, tokens):
    row = np.full(task.max_step, task.vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens[: task.max_step]
    return row


def random_state(rng) -> TwinState:
    """A state of some of the blocks: any steps done, any goal that such blocks can be in, now and then reached."""
    names = rng.sample(COLOURS, rng.randint(2, 6))
    facts = random_facts(names, rng)
    places = [fact for fact in (facts if rng.random() < 0.1 else random_facts(names, rng)) if fact[0] in _PLACED]
    goal = frozenset(rng.sample(sorted(places), rng.randint(1, len(places))))
    order = tuple(rng.sample(names, len(names)))
    return TwinState(facts, goal, rng.choice([0, 3, 10, 11, 12]), rng.random() < 0.8, order)


_PLACED = ("on", "ontable", "holding")


def random_step(task, state, rng) -> tuple[list[int], int]:
    """Tokens of a step, legal or not, and a length that is mostly right."""
    legal = [task.vocabulary.encode(text) for text in legal_texts(task, state)]
    tokens, kind = list(rng.choice(legal)), rng.randrange(9)
    if kind < 3:  # now and then the step that reaches the goal, which is rare by chance.
        near = [
            text + told(task, facts, state.order)
            for text, facts in successors(state.facts, COLOURS)
            if state.goal <= facts
        ]
        tokens = task.vocabulary.encode(rng.choice(near)) if near else tokens
    elif kind < 5:  # any action, legal or not, and what it would lead to or what is.
        text, (_, adds, takes) = rng.choice([*all_actions(state.order).items()])
        facts = state.facts - takes | adds if rng.random() < 0.5 else state.facts
        tokens = task.vocabulary.encode(text + told(task, facts, state.order))
    elif kind == 5:
        tokens[rng.randrange(len(tokens))] = rng.randrange(task.vocabulary.size)
    elif kind == 6:
        return tokens, rng.choice([-1, 0, 1, len(tokens) - 1, len(tokens) + 1, task.max_step, task.max_step + 1])
    elif kind == 7:
        del tokens[rng.randrange(len(tokens))]
    else:  # a block with itself.
        x = rng.choice(state.order)
        text = f"stack the {x} block on top of the {x} block"
        tokens = task.vocabulary.encode(text + told(task, state.facts, state.order))
    return tokens, len(tokens)


@pytest.mark.parametrize("config", [CONFIG, STATES], ids=["actions", "states"])
def test_random_steps_are_judged_as_the_twin_does(config):
    task, rng, cases = task_of(config), random.Random(0), []
    while len(cases) < (100_000 if FULL else 2000):
        state = random_state(rng)
        tokens, length = random_step(task, state, rng)
        cases.append((state, padded(task, tokens), length))
    rows = [(device_state(task, state), tokens, np.int32(length)) for state, tokens, length in cases]
    seen = {"legal": 0, "rewarded": 0, "done, not rewarded": 0}
    for (state, tokens, length), got in zip(cases, in_chunks(compiled(task, "step"), rows), strict=True):
        new, legal, reward, done = twin_step(task, state, tokens, length)
        want = (new.facts, new.steps_done, new.chain_legal, legal, reward, done)
        facts = device_facts(got.state.place_n.tolist())
        judged = (facts, got.state.steps_done, got.state.chain_legal, got.legal, got.reward, got.done)
        assert judged == want, (state, task.vocabulary.decode(tokens), length)
        assert (got.state.goal_n == device_state(task, state).goal_n).all()
        seen["legal"] += legal
        seen["rewarded"] += reward > 0
        seen["done, not rewarded"] += done and not reward and new.goal <= new.facts
    assert 0.1 * len(cases) < seen["legal"] < 0.7 * len(cases) and min(seen.values()) > 0.01 * len(cases), seen


@pytest.mark.parametrize("config", [CONFIG, STATES], ids=["actions", "states"])
def test_legal_steps_lists_what_the_twin_lists(config):
    task, rng = task_of(config), random.Random(1)
    states = [random_state(rng) for _ in range(20_000 if FULL else 1000)]
    listing = in_chunks(compiled(task, "legal_steps"), [(device_state(task, state),) for state in states])
    for state, steps in zip(states, listing, strict=True):
        done = state.goal <= state.facts or state.steps_done >= task.max_steps
        want = [] if done else legal_texts(task, state)
        tokens_AL, length_A = steps.tokens_AL[steps.valid_A], steps.length_A[steps.valid_A]
        listed = [task.vocabulary.decode(tokens) for tokens in tokens_AL]
        assert sorted(listed) == sorted(want)  # as lists: no text is there twice.
        for text, tokens, length in zip(listed, tokens_AL, length_A, strict=True):
            assert tokens[:length].tolist() == task.vocabulary.encode(text) and not tokens[length:].any()
        assert not steps.length_A[~steps.valid_A].any() and not steps.tokens_AL[~steps.valid_A].any()


@functools.cache
def step_of_one(task):
    return jax.jit(task.step)


def run(problem, plan, task=None):
    """(legal, reward, done) of each line of a plan."""
    task, state, judged = task or task_of(), problem.state, []
    for line in plan.splitlines(keepends=True):
        tokens = task.vocabulary.encode(line)
        transition = step_of_one(task)(state, padded(task, tokens), len(tokens))
        judged.append((bool(transition.legal), float(transition.reward), bool(transition.done)))
        state = transition.state
    return judged


def test_one_illegal_step_spoils_a_plan_that_reaches_the_goal():
    problem = task_of().problem("red on table , blue on table . goal : red on blue .")
    plan = "pick up the red block\nstack the red block on top of the blue block\n"
    illegal = "put down the red block\n"
    assert run(problem, plan) == [(True, 0, False), (True, 1, True)]
    # It ends there all the same, and nothing after the end counts.
    assert run(problem, illegal + plan) == [(False, 0, False), (True, 0, False), (True, 0, True)]
    assert run(problem, plan + "unstack the red block from on top of the blue block\n")[-1] == (False, 0, True)
    moves = "pick up the red block\nput down the red block\n" * 6
    assert run(problem, moves) == [(True, 0, False)] * 11 + [(True, 0, True)]
    assert run(problem, moves + illegal)[-1] == (False, 0, True)
    # The goal is reached by the last step that there is, or one too late.
    assert run(problem, moves[: len(moves) * 5 // 6] + plan)[-1] == (True, 1, True)
    assert run(problem, moves + plan)[-1] == (False, 0, True)


def test_a_step_changes_no_type_or_shape():
    task = task_of()
    problem = task.problem(SUSSMAN)
    tokens = jnp.zeros(task.max_step, jnp.int32)
    before, after = jax.eval_shape(
        lambda s: (s, task.step(s, tokens, 1).state), jax.tree.map(jnp.asarray, problem.state)
    )
    assert before == after
    renamed = jax.eval_shape(task.augment, jax.tree.map(jnp.asarray, problem), jax.random.key(0))
    assert renamed == jax.eval_shape(lambda: jax.tree.map(jnp.asarray, problem))
    transition = jax.eval_shape(task.step, problem.state, tokens, 1)
    assert (transition.reward.dtype, transition.done.dtype, transition.legal.dtype) == (jnp.float32, bool, bool)
    with pytest.raises(ValueError, match="vmap over a batch"):
        task.step(problem.state, np.zeros((2, task.max_step), np.int32), 6)


def brute_force(facts, goal, names, most) -> list[str]:
    """All shortest plans of at most `most` steps, by trying every chain of legal steps."""
    chains = [("", facts)]
    for _ in range(most + 1):
        reached = [plan for plan, now in chains if goal <= now]
        if reached:
            return reached
        chains = [(f"{plan}{text}\n", new) for plan, now in chains for text, new in successors(now, names)]
    return []


def test_shortest_plans_are_those_that_brute_force_finds():
    three, checked = planner.all_forms(3), 0
    four = {form: length for form, length in planner.all_forms(4).items() if length <= (8 if FULL else 4)}
    for (state, goal), length in [*three.items(), *four.items()]:
        facts, wanted = device_facts(state), frozenset(f for f in device_facts(goal) if f[0] == "on")
        if len(state) == 3 and length > 6 and not FULL:
            continue
        plans = ["".join(wording.write_steps(state, plan, None)) for plan in planner.shortest_plans(state, goal)]
        assert sorted(plans) == sorted(brute_force(facts, wanted, COLOURS[: len(state)], length))
        assert {plan.count("\n") for plan in plans} == {length} == {planner.plan_length(state, goal)}
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("num_blocks", [3, 4] if FULL else [3])
def test_all_problems_are_found_once_whatever_their_blocks_are_called(num_blocks):
    places = list(itertools.product(range(-1, num_blocks), repeat=num_blocks))
    states = [state for state in places if possible(state)]
    goals = list(itertools.product([*range(num_blocks), planner.ANY], repeat=num_blocks))
    found = {}
    for state in states:
        for goal in goals:
            if possible(tuple(planner.TABLE if place == planner.ANY else place for place in goal)):
                length = planner.plan_length(state, goal)
                if length:
                    names = itertools.permutations(range(num_blocks))
                    alike = min((renamed(state, n), renamed(goal, n)) for n in names)
                    assert found.setdefault(alike, length) == length
                    assert planner.form(state, goal) == planner.form(*alike)
    forms = planner.all_forms(num_blocks)
    assert len(forms) == len(found)
    for (state, goal), length in forms.items():
        names = itertools.permutations(range(num_blocks))
        assert found[min((renamed(state, n), renamed(goal, n)) for n in names)] == length
        assert planner.form(state, goal) == (state, goal)


def possible(state) -> bool:
    try:
        wording.check_state(state, COLOURS[: len(state)])
    except ProblemError:
        return False
    return True


def renamed(places, names):
    """Places where block b is called names[b]."""
    new = [0] * len(places)
    for block, place in enumerate(places):
        new[names[block]] = names[place] if place >= 0 else place
    return tuple(new)


def test_no_problem_is_in_two_splits_whatever_its_blocks_are_called():
    splits = small_splits()
    forms = [form_of(text) for rows in splits.values() for text in rows]
    assert len({*forms}) == len(forms) > 500
    # Nor is one where the config is another.
    other = BlocksworldConfig(num_blocks=(5, 5), train_plan=(8, 10), seed=1).splits()
    test, train = ({form_of(text) for text in rows} for rows in (splits["test"], other["train"]))
    assert not test & train and {*other["test"]} != {*splits["test"]}


def form_of(text):
    """The form of a problem, without the blocks that are absent."""
    state, goal = task_of().parse(text)
    present = [block for block, place in enumerate(state) if place != planner.ABSENT]
    number = {block: i for i, block in enumerate(present)}
    return planner.form(*(tuple(number.get(places[b], places[b]) for b in present) for places in (state, goal)))


def test_problems_are_as_the_config_says_and_have_plans():
    task, lengths = task_of(SMALL), {}
    for split, rows in small_splits().items():
        lengths[split] = [planner.plan_length(*task.parse(text)) for text in rows]
        assert len({*rows}) == len(rows)
        for text in rows:
            assert 3 <= sum(place != planner.ABSENT for place in task.parse(text)[0]) <= 5
    assert {*lengths["train"]} == {*lengths["validation"]} == {2, 4, 6, 8, 10, 12}
    assert lengths["test"] == [6, 8, 10, 12] * 15  # plan lengths take turns.
    assert small_splits() == SMALL.splits()
    texts = small_splits()["train"]
    for name in COLOURS[:5]:  # all names are in use.
        assert sum(name in text for text in texts) > 0.5 * len(texts)


@pytest.mark.parametrize("config", [CONFIG, STATES], ids=["actions", "states"])
def test_every_worked_solution_is_rewarded_at_its_end(config):
    task = task_of(config)
    rows = config.splits()["test"]
    for text in rows if FULL else rows[:12]:
        plans = task.solution_texts(text)
        judged = run(task.problem(text), plans[0], task)
        length = planner.plan_length(*task.parse(text))
        assert judged == [(True, 0, False)] * (length - 1) + [(True, 1, True)]
        tokens = task.solutions(text, limit=2)
        assert ["".join(map(task.vocabulary.decode, plan)) for plan in tokens] == plans[:2]


def test_random_play_reaches_the_goals_of_short_plans():
    task = task_of()
    rows = BlocksworldConfig(train_plan=(2, 2)).splits()["train"][:100]
    problems = load_problems(task, rows)
    chains = jax.jit(jax.vmap(functools.partial(random_play, task)))(problems, jax.random.split(jax.random.key(0), 100))
    assert 0.15 < float(jnp.mean(chains.outcome)) < 0.6


@pytest.mark.parametrize("states", [False, True])
def test_plays_in_hindsight_solve_what_they_reached_and_nothing_held_out(states):
    config = BlocksworldConfig(num_blocks=(3, 4), num_validation=10**6, num_test=10**6, states=states)
    task, splits = make_task(config), config.splits()
    held_out = {planner.form(*task.parse(row)) for split in ("validation", "test") for row in splits[split]}
    number, shortest, detours = 0, 0, 0
    for row in splits["train"][:40]:
        played = task.hindsight(row, 20, seed=0)
        assert played == task.hindsight(row, 20, seed=0)
        assert not played or played != task.hindsight(row, 20, seed=1)
        for play in played:
            text = task.vocabulary.decode(play.prompt)
            state, goal = task.parse(text)
            assert planner.form(state, goal) not in held_out
            lines = [*map(task.vocabulary.decode, play.steps)]
            plan = [line for line, taken in zip(lines, play.taken, strict=True) if taken]
            assert run(task.problem(text), "".join(plan), task) == rewarded_at_the_end(len(plan))
            assert play.steps_left[0] == len(plan) <= task.max_steps
            if len(lines) <= task.max_steps:  # What is read, detours and all, is a plan as well.
                assert run(task.problem(text), "".join(lines), task) == rewarded_at_the_end(len(lines))
            left_after = [*play.steps_left[1:], 0]
            for taken, before, after in zip(play.taken, play.steps_left, left_after, strict=True):
                assert not taken or after == before - 1
            detours += len(lines) > len(plan)
            shortest += len(plan) == planner.plan_length(state, goal)
            number += 1
    assert number > 100 and detours > 30 and 0.3 < shortest / number < 0.9  # No planner was asked.


def rewarded_at_the_end(number):
    """What is said of so many right lines of a plan."""
    return [(True, 0, False)] * (number - 1) + [(True, 1, True)]


def test_a_problem_is_written_in_one_way():
    task = task_of()
    for text in small_splits()["train"][::20]:
        problem = task.problem(text, index=3)
        assert wording.write(*task.parse(text)) == text and problem.index == 3
        assert task.vocabulary.decode(problem.tokens_P) == text + "\n" and problem.tokens_P[0] == task.vocabulary.bos
        assert task.vocabulary.decode(problem.tokens_P[: problem.length]) == text + "\n"
    loose = "Blue on table, red on table,orange on red.\nGoal: blue on orange, red on blue"
    assert wording.write(*task.parse(loose)) == SUSSMAN
    held = "red in hand, blue on table. goal: red on table."
    assert task.solution_texts(held) == ["put down the red block\n"] and task.problem(held).state.place_n[0] == -2
    longest = (
        "red on blue , blue on table , orange on table , yellow on table , white on table , magenta on table . goal"
    )
    longest += " : red on table , blue on red , orange on table , yellow on table , white on table , magenta on table ."
    assert task.problem(longest).length == task.max_prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no goal: give a problem like"),
        ("red on blue , blue on table", "names no goal: give a problem like"),
        ("red upon blue . goal : red on blue .", "'red upon blue' says of no block where it is: give"),
        ("red on blue blue on table . goal : red on blue .", "says of no block where it is: give"),
        ("red on table . goal : .", "says of no block where it is: give"),
        ("pink on table . goal : pink on red .", "'pink' is no block: the blocks are red, blue"),
        ("table on red , red on table . goal : red on table .", "'table' is no block: the blocks are red, blue"),
        ("red on blue . goal : blue on red .", "Nothing says where the block blue is: give"),
        ("red on table . goal : red on blue .", "The goal speaks of the block blue"),
        ("red on table , red on blue , blue on table . goal : red on blue .", "red is in two places: give"),
        ("red on blue , orange on blue , blue on table . goal : blue on red .", "2 blocks are on the block blue: it"),
        ("red on blue , blue on red . goal : red on table .", "on each other in a circle"),
        ("red on red . goal : red on table .", "on each other in a circle"),
        ("red in hand , blue in hand . goal : red on blue .", "The hand holds 2 blocks"),
        ("red in hand , blue on red . goal : red on blue .", "The block blue is on one that the hand holds"),
        ("red on table , blue on table . goal : red on blue , blue on red .", "No plan reaches the goal"),
        ("red on blue , blue on table . goal : red on blue .", "holds already: give"),
        (
            "red on blue , blue on orange , orange on yellow , yellow on table , white on table . goal : "
            "blue on red , red on orange , orange on yellow , yellow on white .",
            "has 14 steps: the task allows 12",
        ),
    ],
)
def test_a_bad_problem_is_refused_in_one_sentence(text, message):
    with pytest.raises(ProblemError, match=message) as error:
        task_of().problem(text)
    assert "\n" not in str(error.value)


def test_a_bad_config_is_refused():
    with pytest.raises(ValueError, match="num_blocks is 4,7: give a range within 2 to 6"):
        BlocksworldConfig(num_blocks=(4, 7))
    with pytest.raises(ValueError, match="train_plan is 8,6: give a range within 2 to 12"):
        BlocksworldConfig(train_plan=(8, 6))
    with pytest.raises(ValueError, match="test_plan is 2,12: give a range within 2 to 10"):
        BlocksworldConfig(train_plan=(2, 8), max_steps=10)
    with pytest.raises(UserError, match="There are no train problems"):
        BlocksworldConfig(num_blocks=(2, 2), train_plan=(3, 3)).splits()


@pytest.mark.parametrize("config", [CONFIG, STATES], ids=["actions", "states"])
def test_an_augmented_problem_is_the_same_under_other_names(config):
    task = task_of(config)
    text = "red on blue , blue on table , orange on table . goal : orange on red ."
    plan = task.solution_texts(text)[0]
    problem = jax.tree.map(jnp.asarray, task.problem(text))
    names_K = jax.random.split(jax.random.key(0), 400)
    augmented = jax.device_get(jax.jit(jax.vmap(functools.partial(task.augment, problem)))(names_K))
    texts = [task.vocabulary.decode(tokens).rstrip("\n") for tokens in augmented.tokens_P]
    assert len({*texts}) > 90  # of 120: three names of six.
    old = [COLOURS.index(name) for name in ("red", "blue", "orange")]
    for i, new_text in enumerate(texts):
        one = jax.tree.map(lambda x, i=i: x[i], augmented)
        state, goal = task.parse(new_text)
        assert tuple(one.state.place_n) == state and tuple(one.state.goal_n) == goal
        assert wording.write(state, goal) == new_text  # the prompt's order is that of a new problem.
        if i < 20:
            words = new_text.split()
            name = dict(zip([COLOURS[b] for b in old], [words[0], words[2], words[8]], strict=True))
            renamed_plan = re.sub(r"\w+", lambda word, name=name: name.get(word[0], word[0]), plan)
            assert run(one, renamed_plan, task) == [(True, 0, False), (True, 1, True)]


def test_states_have_the_order_of_the_prompt_also_where_another_would_be_as_good():
    """Nothing tells orange from yellow but their names, and so those decide which of them a new problem has first."""
    task = task_of(STATES)
    problem = task.problem("red on blue , blue on table , orange on table , yellow on table . goal : blue on red .")
    keys = jax.random.split(jax.random.key(0), 20)
    augmented = jax.device_get(jax.vmap(task.augment, (None, 0))(jax.tree.map(jnp.asarray, problem), keys))
    rewritten = 0
    for i, tokens in enumerate(augmented.tokens_P):
        text = task.vocabulary.decode(tokens).rstrip("\n")
        one, plan = jax.tree.map(lambda x, i=i: x[i], augmented), task.solution_texts(text)[0]
        assert run(one, plan, task) == [(True, 0, False)] * (plan.count("\n") - 1) + [(True, 1, True)]
        rewritten += wording.write(*task.parse(text)) != text
    assert 0 < rewritten < len(keys)


def test_a_step_may_say_where_it_leaves_the_blocks():
    task = task_of(STATES)
    problem = task.problem("red on blue , blue on table , orange on table . goal : orange on red .")
    plan = "pick up the orange block : red blue blue table orange hand\n"
    last = "stack the orange block on top of the red block : red blue blue table orange red\n"
    assert run(problem, plan + last, task) == [(True, 0, False), (True, 1, True)]
    for wrong in (last.replace(" orange red", " orange hand"), last.replace(" : ", " ")):
        assert run(problem, plan + wrong, task) == [(True, 0, False), (False, 0, False)]


PDDL = """
; Sussman's anomaly
(define (problem BW-rand-3)
(:domain blocksworld-4ops)
(:objects a b c )
(:init (handempty) (ontable a) (ontable b) (on c a) (clear b) (clear c)) ; c is on a
(:goal (and (on a b) (on b c)))
)
"""


def test_a_pddl_file_is_a_problem():
    task = task_of()
    assert task.from_file(PDDL) == SUSSMAN and task.problem(SUSSMAN)
    typed = PDDL.replace("a b c )", "a b - block\n c - block)")
    assert task.from_file(typed) == task.from_file(PDDL.upper()) == SUSSMAN
    coloured = PDDL.replace("BW-rand-3", "p")
    for old, new in [("a", "blue"), ("b", "white"), ("c", "red")]:
        for end in " )":
            coloured = coloured.replace(f" {old}{end}", f" {new}{end}")
    assert (
        task.from_file(coloured)
        == "red on blue , blue on table , white on table . goal : blue on white , white on red ."
    )
    one_goal = PDDL.replace("(and (on a b) (on b c))", "(ontable c)")
    held = one_goal.replace("(handempty) ", "(holding c)").replace("(on c a) (clear b) (clear c)", "(clear a)(clear b)")
    assert task.from_file(held).endswith("orange in hand . goal : orange on table .")
    unsolvable = task.from_file(PDDL.replace("(on b c)", "(on b a)"))
    with pytest.raises(ProblemError, match="No plan reaches the goal"):
        task.problem(unsolvable)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (PDDL, "", r"not one \(define"),
        (PDDL, "define", r"not one \(define"),
        ("(define", "define", r"a \) without its \("),
        ("(define", "((define", r"1 \( without \)"),
        ("(:init", "(init-", r"no \(:init ...\)"),
        ("(:objects a b c )", "", r"no \(:objects ...\)"),
        ("(:objects a b c )", "(:objects)", "objects are ''"),
        ("(:objects a b c )", "(:objects a b a)", "objects are 'a b a'"),
        ("(:objects a b c )", "(:objects a b (c))", "objects are 'a b "),
        ("(:objects a b c )", "(:objects a b c table)", "objects are 'a b c table'"),
        ("(:objects a b c )", "(:objects a b c d e f g)", "has 7 blocks: this task has at most 6"),
        ("(:objects a b c )", "(:objects a b c d)", r"does not say where d is: give \(ontable d\)"),
        ("(:objects a b c )", "(:objects a b c) stray", "stray where a section belongs"),
        ("(on c a)", "(on c)", r"says \(on c\)"),
        ("(on c a)", "(above c a)", r"says \(above c a\)"),
        ("(on c a)", "on", "says on"),
        ("(on c a)", "((on) c a)", r"says \(\(on\) c a\)"),
        ("(on c a)", "()", r"says \(\)"),
        ("(on c a)", "(on c d)", "'d' is no block: the blocks are a, b, c"),
        ("(on c a)", "(on c a) (on c b)", "The block c is in two places"),
        ("(ontable a)", "(on a c)", "in a circle"),
        ("(ontable b)", "(on b a)", "2 blocks are on the block a"),
        ("(clear b) ", "", r"leaves \(clear b\) out"),
        ("(clear b)", "(clear b) (clear a)", r"says \(clear a\)"),
        ("(clear b)", "(clear b) (clear d)", r"says \(clear d\)"),
        ("(on c a)", "(on c table)", r"says \(on c table\)"),
        ("(handempty)", "", r"must say \(handempty\)"),
        ("(on c a) (clear b) (clear c)", "(holding c) (clear a) (clear b)", r"must say \(handempty\)"),
        ("(:goal (and (on a b) (on b c)))", "(:goal)", "goal is"),
        ("(and (on a b) (on b c))", "(and)", "The goal is empty"),
        ("(on b c)", "(clear a)", r"goal has \(clear a\)"),
        ("(on b c)", "(not (on a c))", r"says \(not \(on a c\)\)"),
    ],
)
def test_a_bad_pddl_file_is_refused_in_one_sentence(old, new, message):
    assert old in PDDL
    with pytest.raises(ProblemError, match=message) as error:
        task_of().from_file(PDDL.replace(old, new))
    assert "\n" not in str(error.value)
