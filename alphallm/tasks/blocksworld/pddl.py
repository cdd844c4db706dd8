"""Reads a problem file of PlanBench's domain blocksworld-4ops (PDDL; Valmeekam et al. 2023) as a problem's text.

    (define (problem p) (:domain blocksworld-4ops) (:objects a b)
      (:init (handempty) (ontable b) (on a b) (clear a))
      (:goal (and (on b a))))

The hand may hold a block at the beginning; a goal may say where blocks are to be, not that they are to be clear.
"""

import re
from typing import Any

from alphallm.tasks.base import ProblemError
from alphallm.tasks.blocksworld import wording
from alphallm.tasks.blocksworld.planner import ABSENT, ANY, HAND, TABLE, Places

_ARITY = {"on": 2, "ontable": 1, "holding": 1, "clear": 1, "handempty": 0}
_NO_NAMES = ("table", "hand")  # they are places in the problem's text.
_HELP = "give a problem file of PlanBench's domain blocksworld-4ops"


def parse(text: str, num_blocks: int) -> str:
    """The problem's text: the first object has the first colour, and so on; objects named by colours keep them.

    ProblemError for a malformed file, for more objects than `num_blocks`, and for a state that no blocks could be in.
    """
    sections = _sections(_read(text))
    names = _by_colour(_names(sections["objects"], num_blocks), num_blocks)
    facts = [_fact(fact) for fact in sections["init"]]
    state = wording.places_of(_places(facts), names, ABSENT)
    wording.check_state(state, names)
    _check_init(state, names, facts)
    goal = wording.places_of(_places(_goal_facts(sections["goal"])), names, ANY)
    wording.check_goal(state, goal, names)
    return wording.write(state, goal)


def _read(text: str) -> list[Any]:
    """The file's one expression as nested lists of words."""
    open_lists: list[list[Any]] = [[]]
    for piece in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text).lower()):
        if piece == "(":
            open_lists.append([])
        elif piece != ")":
            open_lists[-1].append(piece)
        elif len(open_lists) > 1:
            closed = open_lists.pop()
            open_lists[-1].append(closed)
        else:
            raise ProblemError(f"The PDDL has a ) without its (: {_HELP}.")
    if len(open_lists) > 1:
        raise ProblemError(f"The PDDL has {len(open_lists) - 1} ( without ): {_HELP}.")
    expressions = open_lists[0]
    if len(expressions) != 1 or expressions[0][:1] != ["define"]:
        raise ProblemError(f"The PDDL is not one (define ...): {_HELP}.")
    return expressions[0]


def _sections(define: list[Any]) -> dict[str, list[Any]]:
    """What follows the names :objects, :init and :goal."""
    sections: dict[str, list[Any]] = {}
    for section in define[1:]:
        if not isinstance(section, list) or not section or not isinstance(section[0], str):
            raise ProblemError(f"The PDDL has {_shown(section)} where a section belongs: {_HELP}.")
        sections[section[0].removeprefix(":")] = section[1:]
    missing = [f"(:{name} ...)" for name in ("objects", "init", "goal") if name not in sections]
    if missing:
        raise ProblemError(f"The PDDL has no {missing[0]}: {_HELP}.")
    return sections


def _names(objects: list[Any], num_blocks: int) -> list[str]:
    """The names of the objects, without their type."""
    listed = " ".join(map(_shown, objects))
    names = re.sub(r" - \w+", "", listed).split()
    fit = all(re.fullmatch(r"[\w-]+", name) and name not in _NO_NAMES for name in names)
    if not names or not fit or len({*names}) < len(names):
        raise ProblemError(f"The PDDL's objects are {listed!r}: give different names, for example (:objects a b c).")
    if len(names) > num_blocks:
        raise ProblemError(f"The PDDL has {len(names)} blocks: this task has at most {num_blocks}.")
    return names


def _by_colour(names: list[str], num_blocks: int) -> list[str]:
    """The object of each colour, "" where there is none."""
    colours = wording.COLOURS[:num_blocks]
    if {*names} <= {*colours}:
        return [name if name in names else "" for name in colours]
    return names + [""] * (num_blocks - len(names))


def _fact(fact: Any) -> tuple[str, ...]:
    words = fact if isinstance(fact, list) else [fact]
    named = all(isinstance(word, str) and word not in _NO_NAMES for word in words)
    if not named or _ARITY.get((words or [""])[0]) != len(words) - 1:
        known = "(on a b), (ontable a), (holding a), (clear a) and (handempty)"
        raise ProblemError(f"The PDDL says {_shown(fact)}: {_HELP}, whose facts are {known}.")
    return tuple(words)


def _places(facts: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """The facts that say where a block is, as pairs of it and its place."""
    place = {"ontable": "table", "holding": "hand"}
    return [(fact[1], place.get(fact[0], fact[-1])) for fact in facts if fact[0] in ("on", "ontable", "holding")]


def _goal_facts(goal: list[Any]) -> list[tuple[str, ...]]:
    if len(goal) != 1 or not isinstance(goal[0], list):
        raise ProblemError(f"The PDDL's goal is {_shown(goal)}: give (:goal (and (on a b) ...)).")
    facts = [_fact(fact) for fact in (goal[0][1:] if goal[0][:1] == ["and"] else goal)]
    for fact in facts:
        if fact[0] in ("clear", "handempty"):
            raise ProblemError(f"The PDDL's goal has ({' '.join(fact)}): a goal may only say what blocks are on.")
    return facts


def _check_init(state: Places, names: list[str], facts: list[tuple[str, ...]]) -> None:
    """ProblemError unless (:init) says where every block is, and which are clear as that has it."""
    for block, name in enumerate(names):
        if name and state[block] == ABSENT:
            raise ProblemError(
                f"The PDDL's (:init) does not say where {name} is: give (ontable {name}) or (on {name} ...)."
            )
    clear = {names[block] for block, place in enumerate(state) if block not in state and place >= TABLE}
    for name in sorted(clear ^ {fact[1] for fact in facts if fact[0] == "clear"}):
        wrong = f"leaves (clear {name}) out" if name in clear else f"says (clear {name})"
        raise ProblemError(f"The PDDL's (:init) {wrong}: give it for the blocks that nothing is on, and no others.")
    if (HAND not in state) != (("handempty",) in facts):
        raise ProblemError("The PDDL's (:init) must say (handempty) or what the hand holds: give one of the two.")


def _shown(expression: Any) -> str:
    return f"({' '.join(map(_shown, expression))})" if isinstance(expression, list) else str(expression)
