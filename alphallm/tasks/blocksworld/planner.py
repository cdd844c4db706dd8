"""Shortest plans by breadth-first search, and every problem of so many blocks. Plain Python, host side, exact.

A state says of each block what it is on: `state[b]` is a block, or `TABLE`, `HAND` or `ABSENT`. A goal says the same of
the blocks that it speaks of, and `ANY` of the others. Both are tuples, of one length.
"""

import itertools
from collections.abc import Iterator

TABLE, HAND, ABSENT, ANY = -1, -2, -3, -4  # where a block is, if not on a block.
PICK_UP, PUT_DOWN, STACK, UNSTACK = range(4)

Places = tuple[int, ...]
Action = tuple[int, int, int]  # what is done, the block that moves, and the one that it is put on or taken from.
Form = tuple[Places, Places]


def moves(state: Places) -> Iterator[tuple[Action, Places]]:
    """The legal actions of a state and where they lead; the third part of an action on the table is -1 (`TABLE`)."""
    clear = [block for block, place in enumerate(state) if place >= TABLE and block not in state]
    if HAND not in state:
        for block in clear:
            kind = PICK_UP if state[block] == TABLE else UNSTACK
            yield (kind, block, state[block]), _placed(state, block, HAND)
        return
    held = state.index(HAND)
    yield (PUT_DOWN, held, TABLE), _placed(state, held, TABLE)
    for block in clear:
        yield (STACK, held, block), _placed(state, held, block)


def _placed(state: Places, block: int, place: int) -> Places:
    return (*state[:block], place, *state[block + 1 :])


def plan_length(state: Places, goal: Places) -> int | None:
    """Actions of the shortest plans; None where no plan reaches the goal."""
    return next((length for length, level in enumerate(levels(state)) if met(goal, level)), None)


def levels(state: Places) -> Iterator[list[Places]]:
    """The states that can be reached, by the fewest actions that reach them: 0, 1, and so on."""
    seen, level = {state}, [state]
    while level:
        yield level
        further = []
        for place in level:
            for _, new in moves(place):
                if new not in seen:
                    seen.add(new)
                    further.append(new)
        level = further


def met(goal: Places, level: list[Places]) -> list[Places]:
    """The states of `level` that the goal holds in."""
    wanted = [(block, place) for block, place in enumerate(goal) if place != ANY]
    return [state for state in level if all(state[block] == place for block, place in wanted)]


def shortest_plans(state: Places, goal: Places) -> Iterator[list[Action]]:
    """All shortest plans; none where no plan reaches the goal."""
    near: list[set[Places]] = []
    last: list[Places] = []
    for level in levels(state):
        near.append({*level})
        last = met(goal, level)
        if last:
            break
    if not last:
        return
    # Backwards from the goal: the states that shortest plans pass, by the actions that they are away from the start.
    # Every action can be undone, so what comes before a state is what it leads to.
    passed = [{*last}]
    for before in reversed(near[:-1]):
        passed.append(before & {new for place in passed[-1] for _, new in moves(place)})
    passed.reverse()

    def plans_from(place: Places, done: int) -> Iterator[list[Action]]:
        if done == len(passed) - 1:
            yield []
            return
        for action, new in moves(place):
            if new in passed[done + 1]:
                yield from ([action, *rest] for rest in plans_from(new, done + 1))

    yield from plans_from(state, 0)


def goal_lengths(state: Places) -> dict[Places, int]:
    """The shortest plan's length of every goal that says of some blocks on which blocks they are, and that can be met.

    A goal that holds already has length 0.
    """
    found: dict[Places, int] = {}
    for length, level in enumerate(levels(state)):
        for places in level:
            for goal in itertools.product(*((ANY, place) if place >= 0 else (ANY,) for place in places)):
                found.setdefault(goal, length)
    return found


def order(state: Places, goal: Places) -> list[int]:
    """The blocks in an order that does not depend on their names: the highest towers first, each from its top down.

    Of towers of one height, those come first whose order makes `form` the smallest. A held block is last.
    """
    return min(_orders(state), key=lambda blocks: _form(state, goal, blocks)[1])


def form(state: Places, goal: Places) -> Form:
    """The problem with its blocks numbered in their order: two problems that differ in names alone have one form."""
    return _form(state, goal, order(state, goal))


def _orders(state: Places) -> Iterator[list[int]]:
    towers = [_tower(state, block) for block in range(len(state)) if block not in state and state[block] >= TABLE]
    by_height = [[t for t in towers if len(t) == height] for height in range(len(state), 0, -1)]
    held = [[block] for block, place in enumerate(state) if place == HAND]
    for arranged in itertools.product(*map(itertools.permutations, by_height)):
        yield list(itertools.chain(*itertools.chain(*arranged), *held))


def _tower(state: Places, top: int) -> list[int]:
    tower = [top]
    while state[tower[-1]] >= 0:
        tower.append(state[tower[-1]])
    return tower


def _form(state: Places, goal: Places, blocks: list[int]) -> Form:
    number = {block: i for i, block in enumerate(blocks)} | {place: place for place in (TABLE, HAND, ABSENT, ANY)}
    return tuple(number[state[b]] for b in blocks), tuple(number[goal[b]] for b in blocks)


def all_forms(num_blocks: int) -> dict[Form, int]:
    """The shortest plan's length of every problem of so many blocks up to their names: all states with an empty hand,
    all goals of `goal_lengths` that do not hold already.
    """
    found = {}
    for state in _towers(num_blocks, num_blocks):
        orders, seen = list(_orders(state)), set()
        for goal, length in goal_lengths(state).items():
            if length == 0 or goal in seen:
                continue
            alike = {_form(state, goal, blocks)[1] for blocks in orders}
            seen |= alike
            found[state, min(alike)] = length
    return found


def _towers(num_blocks: int, highest: int, first: int = 0) -> Iterator[Places]:
    """Every choice of towers up to `highest` of blocks numbered from `first` on, in the order of `order`."""
    if num_blocks == 0:
        yield ()
    for height in range(min(highest, num_blocks), 0, -1):
        tower = (*range(first + 1, first + height), TABLE)
        for rest in _towers(num_blocks - height, height, first + height):
            yield (*tower, *rest)
