"""Random problems, and the template of one: what its solution computes, whatever its names, numbers and extras."""

import hashlib
import random
from collections.abc import Sequence

from alphallm.tasks.igsm import wording
from alphallm.tasks.igsm.wording import CATEGORIES, CATEGORY_OF, INNER, MOST_THINGS, NEXT, OUTER, Name, Story, Term

_OPERANDS = (1, 2, 3)  # weights of none, one and two.
_FRESH = 0.7  # of operands, those that nothing depends on yet: else few parameters would be needed.


def draw(generator: random.Random, ops: int, max_sentences: int, modulus: int) -> Story | None:
    """One attempt at a problem of so many operations; None where the parameters drawn have no such question.

    Parameters are defined in a random order, each by ones before it, so that none depends on itself. The question is
    any whose shortest solution has `ops` operations; what it does not depend on stays in, and the sentences are
    shuffled.
    """
    number = generator.randint(min((ops + 1) // 2, max_sentences), max_sentences)
    names = _names(generator, number)
    left = {owner: [name[0] for name in names].count(owner) for owner, _ in names}
    sentences: dict[Name, Sequence[Term]] = {}
    known: dict[Name, set[Name]] = {}  # parameters so far, and what each depends on, itself included.
    cost: dict[Name, int] = {}
    used: set[Name] = set()  # what others depend on.
    for name in names:
        sentences[name] = _chain(generator, [*known], used, modulus)
        new = {name: sentences[name]}
        left[name[0]] -= 1
        if not left[name[0]]:  # all things of the owner are there, which makes their sum known.
            category = CATEGORY_OF[name[1]]
            parts = [other for other in sentences if other[0] == name[0]]
            new[name[0], category] = [("+" if i else "", part) for i, part in enumerate(parts)]
        for parameter, chain in new.items():
            used |= wording.operands(chain)
            known[parameter] = {parameter}.union(*(known[other] for other in wording.operands(chain)))
            cost[parameter] = wording.operations(chain)
    questions = [name for name, needed in known.items() if sum(cost[other] for other in needed) == ops]
    if not questions:
        return None
    shuffled = generator.sample([*sentences], len(sentences))
    return Story({name: sentences[name] for name in shuffled}, generator.choice(questions))


def _names(generator: random.Random, number: int) -> list[Name]:
    """So many instance parameters in a random order, up to three of an owner."""
    owners = [owner for category in NEXT for owner in CATEGORIES[category]]
    generator.shuffle(owners)
    names: list[Name] = []
    for owner in owners:
        things = generator.sample(CATEGORIES[NEXT[CATEGORY_OF[owner]]], generator.randint(1, MOST_THINGS))
        names += [(owner, thing) for thing in things]
    return generator.sample(names[:number], min(number, len(names)))


def _chain(generator: random.Random, known: list[Name], used: set[Name], modulus: int) -> list[Term]:
    """What a sentence says, of parameters that are known."""
    (count,) = generator.choices((0, 1, 2), _OPERANDS)
    operands: list[Name] = []
    for _ in range(min(count, len(known))):
        others = [name for name in known if name not in operands]
        fresh = [name for name in others if name not in used]
        operands.append(generator.choice(fresh if fresh and generator.random() < _FRESH else others))
    if not operands:
        return [("", generator.randrange(modulus))]
    chain: list[Term] = [*zip(("", generator.choice([*INNER])), operands, strict=False)]
    if generator.random() < 0.5:
        sign = generator.choice([*OUTER])
        chain.append((sign, generator.randrange(1 if sign == "*" else 0, modulus)))
    return chain


def template(story: Story) -> str:
    """A hash of the operations that the question needs: the same for problems that differ in names, in numbers, in the
    order of sums and of sentences, or in what is not needed.

    So it is the same for all problems of one solution template of the paper, which tells these apart by their order.
    """
    forms: dict[Name, str] = {}
    for name in story.ordered():
        chain = [(sign, "n" if isinstance(term, int) else forms[term]) for sign, term in story.chains[name]]
        summed = wording.added_up(story.chains[name])
        told = sorted(form for _, form in chain[:summed]), chain[summed:]
        forms[name] = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    return forms[story.asked]
