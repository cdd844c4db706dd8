"""A plain-Python twin of Blocksworld's rules: PlanBench's domain blocksworld-4ops as sets of facts (STRIPS).

It shares the words of a step with the compiled verifier and nothing else: it reads a step's text, looks for the facts
that the action needs, and takes away and adds facts as the domain's file says.
"""

import dataclasses
import itertools
import re

import numpy as np

from alphallm.tasks.blocksworld.blocksworld import BlocksworldState

Fact = tuple[str, ...]
_BLOCK = r"the (\w+) block"
_STEPS = {
    "pick-up": re.compile(rf"pick up {_BLOCK}"),
    "put-down": re.compile(rf"put down {_BLOCK}"),
    "stack": re.compile(rf"stack {_BLOCK} on top of {_BLOCK}"),
    "unstack": re.compile(rf"unstack {_BLOCK} from on top of {_BLOCK}"),
}
COLOURS = ("red", "blue", "orange", "yellow", "white", "magenta")


@dataclasses.dataclass(frozen=True)
class TwinState:
    facts: frozenset[Fact]
    goal: frozenset[Fact]
    steps_done: int = 0
    chain_legal: bool = True
    order: tuple[str, ...] = ()  # of the blocks in the prompt.


def action(name: str, x: str, y: str = "") -> tuple[set[Fact], set[Fact], set[Fact]]:
    """What an action needs, adds and takes away."""
    empty, holding = ("handempty",), ("holding", x)
    if name == "pick-up":
        needs = {("clear", x), ("ontable", x), empty}
        return needs, {holding}, needs
    if name == "put-down":
        return {holding}, {("clear", x), ("ontable", x), empty}, {holding}
    if name == "stack":
        needs = {holding, ("clear", y)}
        return needs, {("on", x, y), ("clear", x), empty}, needs
    needs = {("on", x, y), ("clear", x), empty}
    return needs, {holding, ("clear", y)}, needs


def twin_step(task, state: TwinState, tokens, length: int) -> tuple[TwinState, bool, float, bool]:
    """(new state, legal, reward, done) of the first `length` of `tokens`."""
    if is_done(task, state):
        return state, False, 0.0, True
    facts = _after(task, state, tokens, length)
    legal = facts is not None
    steps_done, chain_legal = state.steps_done + 1, state.chain_legal and legal
    new = TwinState(facts or state.facts, state.goal, steps_done, chain_legal, state.order)
    return new, legal, float(new.chain_legal and new.goal <= new.facts), is_done(task, new)


def is_done(task, state: TwinState) -> bool:
    return state.goal <= state.facts or state.steps_done >= task.max_steps


def told(task, facts: frozenset[Fact], order) -> str:
    """The end of a step that leads to `facts`."""
    if not task.config.states:
        return "\n"
    names = {"ontable": "table", "holding": "hand"}
    placed = {fact[1]: names.get(fact[0], fact[-1]) for fact in facts if fact[0] in ("on", "ontable", "holding")}
    return f" : {' '.join(f'{block} {placed[block]}' for block in order)}\n"


def _after(task, state: TwinState, tokens, length: int) -> frozenset[Fact] | None:
    """The facts after a step, or None where it is illegal."""
    if not 1 <= length <= len(tokens):
        return None
    tokens = [int(token) for token in tokens[:length]]
    text = task.vocabulary.decode(tokens)
    if task.vocabulary.encode(text) != tokens:
        return None
    for name, pattern in _STEPS.items():
        match = pattern.match(text)
        if match:
            needs, adds, takes = action(name, *match.groups())
            new = state.facts - takes | adds
            return new if needs <= state.facts and text[match.end() :] == told(task, new, state.order) else None
    return None


def legal_texts(task, state: TwinState) -> list[str]:
    """The texts of all legal steps."""
    return [text + told(task, new, state.order) for text, new in successors(state.facts, COLOURS)]


def all_actions(names) -> dict[str, tuple[set[Fact], set[Fact], set[Fact]]]:
    """The text of every action on these blocks, legal or not and without its end, and what `action` says of it."""
    found = {}
    for x in names:
        found[f"pick up the {x} block"] = action("pick-up", x)
        found[f"put down the {x} block"] = action("put-down", x)
    for x, y in itertools.permutations(names, 2):
        found[f"stack the {x} block on top of the {y} block"] = action("stack", x, y)
        found[f"unstack the {x} block from on top of the {y} block"] = action("unstack", x, y)
    return found


def successors(facts: frozenset[Fact], names) -> list[tuple[str, frozenset[Fact]]]:
    """The legal steps, as texts, and the facts after them."""
    return [(text, facts - takes | adds) for text, (needs, adds, takes) in all_actions(names).items() if needs <= facts]


def random_facts(names, rng) -> frozenset[Fact]:
    """Blocks in random towers; the hand may hold one."""
    order = rng.sample(names, len(names))
    facts = {("handempty",)}
    if rng.random() < 0.4:
        facts = {("holding", order.pop())}
    below = None
    for name in order:  # each on the one before it, or the first of a new tower.
        on_table = below is None or rng.random() < 0.4
        if not on_table:
            facts.remove(("clear", below))
        facts |= {("clear", name), ("ontable", name) if on_table else ("on", name, below)}
        below = name
    return frozenset(facts)


def device_state(task, state: TwinState) -> BlocksworldState:
    """The same state as numpy arrays."""
    return BlocksworldState(
        place_n=_places(task, state.facts, -3),
        goal_n=_places(task, state.goal, -4),
        order_n=_order(task, state),
        steps_done=np.int32(state.steps_done),
        chain_legal=np.bool_(state.chain_legal),
    )


def _order(task, state: TwinState) -> np.ndarray:
    order = [COLOURS.index(name) for name in state.order]
    return np.array([*order, *(b for b in range(task.num_blocks) if b not in order)], np.int32)


def _places(task, facts, other: int) -> np.ndarray:
    places = np.full(task.num_blocks, other, np.int32)
    for name, *blocks in facts:
        if name in ("on", "ontable", "holding"):
            place = {"ontable": -1, "holding": -2}.get(name)
            places[COLOURS.index(blocks[0])] = COLOURS.index(blocks[1]) if place is None else place
    return places


def device_facts(place_n) -> frozenset[Fact]:
    """The facts of the places of numpy arrays: where blocks are, which are clear, and whether the hand is empty."""
    facts: set[Fact] = set() if -2 in place_n else {("handempty",)}
    for block, place in enumerate(place_n):
        name = COLOURS[block]
        if place == -2:
            facts.add(("holding", name))
        elif place >= -1:
            facts.add(("ontable", name) if place == -1 else ("on", name, COLOURS[place]))
            facts |= set() if block in place_n else {("clear", name)}
    return frozenset(facts)
