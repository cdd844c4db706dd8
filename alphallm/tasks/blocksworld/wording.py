"""A problem in words and back, and what is wrong with one that no blocks could stand in."""

import re
from collections.abc import Iterable, Sequence

from alphallm.tasks.base import ProblemError, short
from alphallm.tasks.blocksworld import planner
from alphallm.tasks.blocksworld.planner import ABSENT, ANY, HAND, TABLE, Action, Places

COLOURS = ("red", "blue", "orange", "yellow", "white", "magenta")  # PlanBench's, for its blocks a to f.
ACTIONS = (
    "pick up the {} block",
    "put down the {} block",
    "stack the {} block on top of the {} block",
    "unstack the {} block from on top of the {} block",
)
_OTHER_WORDS = ". , : goal on in table hand pick up put down stack unstack the block from top of"
_GOAL = " . goal : "
_EXAMPLE = "red on blue , blue on table . goal : blue on red ."


def words(num_blocks: int) -> list[str]:
    """The vocabulary of a task of so many blocks, the names of the blocks first."""
    return [*COLOURS[:num_blocks], *_OTHER_WORDS.split()]


def write(state: Places, goal: Places) -> str:
    """A problem's text: where the blocks are, in `planner.order`, then where they are to be, in the same order."""
    blocks = planner.order(state, goal)
    facts = (" , ".join(_fact(b, places[b]) for b in blocks if places[b] != ANY) for places in (state, goal))
    return f"{_GOAL.join(facts)} ."


def _fact(block: int, place: int) -> str:
    return f"{COLOURS[block]} {'in' if place == HAND else 'on'} {_name(place)}"


def _name(place: int) -> str:
    return {TABLE: "table", HAND: "hand"}.get(place) or COLOURS[place]


def order(text: str) -> list[int]:
    """The blocks in the order in which a text as `write` makes it says where they are."""
    return [COLOURS.index(fact.split()[0]) for fact in text.partition(_GOAL)[0].split(" , ")]


def write_action(action: Action) -> str:
    """A step's text without its end."""
    kind, *blocks = action
    return ACTIONS[kind].format(*(COLOURS[block] for block in blocks))


def write_steps(state: Places, plan: Iterable[Action], blocks: Sequence[int] | None) -> list[str]:
    """The lines of a plan's steps from `state` on; each says where it leaves `blocks`, where any are given."""
    lines = []
    for action in plan:
        state = next(new for one, new in planner.moves(state) if one == action)
        facts = " ".join(f"{COLOURS[b]} {_name(state[b])}" for b in blocks or ())
        lines.append(write_action(action) + (f" : {facts}\n" if blocks else "\n"))
    return lines


def parse(text: str, num_blocks: int) -> tuple[Places, Places]:
    """State and goal of a problem's text; ProblemError where it is malformed or the state impossible.

    Punctuation may stand beside a word, and the order of the facts is free. Whether the goal can be met is not looked
    at.
    """
    spaced = " ".join(re.sub(r"([.,:])", r" \1 ", text.lower()).split())
    initial, there, wanted = spaced.partition(_GOAL)
    if not there:
        raise ProblemError(f'{short(text)} names no goal: give a problem like "{_EXAMPLE}"')
    names = COLOURS[:num_blocks]
    state = places_of(map(_read_fact, initial.split(" , ")), names, ABSENT)
    check_state(state, names)
    goal = places_of(map(_read_fact, wanted.removesuffix(" .").split(" , ")), names, ANY)
    check_goal(state, goal, names)
    return state, goal


def _read_fact(fact: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\w+) (?:on (\w+)|in (hand))", fact)
    if match is None:
        raise ProblemError(f'{short(fact)} says of no block where it is: give a problem like "{_EXAMPLE}"')
    return match[1], match[2] or match[3]


def places_of(facts: Iterable[tuple[str, str]], names: Sequence[str], other: int) -> Places:
    """The places of pairs of a block's name and what it is on (a name, "table" or "hand"), `other` where none is said.

    A block without a name ("") is not there. ProblemError for an unknown name, and for a block with two places.
    """
    code = {name: block for block, name in enumerate(names) if name} | {"table": TABLE, "hand": HAND}
    places = [other] * len(names)
    for name, place in facts:
        unknown = [x for x in (name, place) if x not in code]
        if unknown or name not in names:
            known = ", ".join(filter(None, names))
            raise ProblemError(f"{short((unknown or [name])[0])} is no block: the blocks are {known}.")
        if places[code[name]] not in (other, code[place]):
            raise ProblemError(f"The block {name} is in two places: give each block one.")
        places[code[name]] = code[place]
    return tuple(places)


def check_state(state: Places, names: Sequence[str]) -> None:
    """ProblemError unless blocks can stand so."""
    for block, place in enumerate(state):
        if place >= 0 and state[place] == ABSENT:
            raise ProblemError(f"Nothing says where the block {names[place]} is: give the place of every block.")
        if place >= 0 and state[place] == HAND:
            raise ProblemError(f"The block {names[block]} is on one that the hand holds: nothing can be on that.")
        if place == HAND and state.count(HAND) > 1:
            raise ProblemError(f"The hand holds {state.count(HAND)} blocks: it has room for one.")
        if place >= 0 and state.count(place) > 1:
            raise ProblemError(f"{state.count(place)} blocks are on the block {names[place]}: it has room for one.")
    for block in range(len(state)):
        place = block
        for _ in state:
            place = state[place] if place >= 0 else place
        if place >= 0:
            raise ProblemError(f"The blocks at {names[block]} are on each other in a circle: a tower needs a table.")


def check_goal(state: Places, goal: Places, names: Sequence[str]) -> None:
    """ProblemError where a goal speaks of a block that is not there, or of none at all."""
    if all(place == ANY for place in goal):
        raise ProblemError("The goal is empty: say of at least one block where it is to be.")
    for block, place in enumerate(goal):
        for named in (block, place):
            if place != ANY and named >= 0 and state[named] == ABSENT:
                raise ProblemError(f"The goal speaks of the block {names[named]}, and nothing says where that is.")
