"""Random legal plays, and what each of them shows how to build. Plain Python, host side; no planner is asked."""

import random
from collections.abc import Sequence

from alphallm.tasks.blocksworld import planner
from alphallm.tasks.blocksworld.planner import ANY, Action, Places


def play(state: Places, num_moves: int, chooser: random.Random) -> tuple[Places, list[Places], list[Action]]:
    """A goal, the states of a random play up to where it holds first, and the actions between them.

    The goal names a random part of the blocks that stand on others after `num_moves` actions. It may be empty, or hold
    at the start: then there are no actions.
    """
    states, actions = [state], []
    for _ in range(num_moves):
        action, new = chooser.choice([*planner.moves(states[-1])])
        states.append(new)
        actions.append(action)
    share = chooser.random()
    goal = tuple(place if place >= 0 and chooser.random() < share else ANY for place in states[-1])
    built = next(i for i, places in enumerate(states) if planner.met(goal, [places]))
    return goal, states[: built + 1], actions[:built]


def way(states: Sequence[Places], start: int) -> list[int]:
    """The actions of a play from `start` on, by number, without what it did between two visits to a state."""
    last = {places: i for i, places in enumerate(states)}
    actions, now = [], last[states[start]]
    while now < len(states) - 1:
        actions.append(now)
        now = last[states[now + 1]]
    return actions
