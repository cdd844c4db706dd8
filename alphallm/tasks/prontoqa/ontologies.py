"""The names of PrOntoQA's ontologies (Saparov and He 2023; github.com/asaparov/prontoqa), and problems of them."""

import itertools
import random
from collections.abc import Sequence

from alphallm.tasks.prontoqa.wording import Names, Question, Sentence

_BEFORE, _AFTER, _BRANCHES = (
    1,
    2,
    2,
)  # concepts before the start and after the end of a proof, and off its way, at most.

_FICTIONAL = """
wumpus yumpus zumpus dumpus rompus numpus tumpus vumpus impus jompus timpus yimpus carpus shumpus zhompus rempus fompus
fimpus terpus gerpus sterpus kerpus lempus grimpus
""".split()
_PEOPLE = "fae rex sally max alex sam polly stella wren".split()
_NUMBERS = "3 7 31 127 8191 131071".split()

# Chains of the true ontology, each concept with what may be said of it and, if that is asked, of what it is not so.
_Properties = dict[str, list[tuple[str, bool, str]]]
_ANIMAL = {"animal": [("multicellular", True, "bacteria"), ("unicellular", False, "bacteria")]}
_CHAINS: list[tuple[list[str], _Properties, Sequence[str]]] = [
    (
        "tabby cat feline carnivore mammal vertebrate chordate bilaterian animal".split(),
        {
            **_ANIMAL,
            "mammal": [("furry", True, "snake"), ("warm-blooded", True, "snake"), ("cold-blooded", False, "snake")],
            "carnivore": [("carnivorous", True, "sheep"), ("herbivorous", False, "sheep")],
        },
        _PEOPLE,
    ),
    (
        "painted-lady butterfly lepidopteran insect arthropod protostome invertebrate animal".split(),
        {
            **_ANIMAL,
            "arthropod": [("segmented", True, "nematode"), ("small", True, "whale"), ("bony", False, "whale")],
            "insect": [("six-legged", True, "spider"), ("eight-legged", False, "spider")],
        },
        _PEOPLE,
    ),
    (
        "mersenne-prime prime-number natural-number integer real-number number".split(),
        {
            "real-number": [("real", True, "imaginary-number"), ("imaginary", False, "complex-number")],
            "natural-number": [("positive", True, "negative-number"), ("negative", False, "negative-number")],
            "prime-number": [("prime", True, "composite-number"), ("composite", False, "composite-number")],
        },
        _NUMBERS,
    ),
]
_IRREGULAR = {
    "tabby": "tabbies", "butterfly": "butterflies", "painted-lady": "painted-ladies", "bacteria": "bacteria",
    "sheep": "sheep",
}  # fmt: skip


def _true_names() -> Names:
    concepts: dict[str, str] = {}
    families: dict[tuple[str, ...], None] = {}
    for chain, properties, _ in _CHAINS:
        others = [other for choices in properties.values() for _, _, other in choices]
        concepts |= {noun: _IRREGULAR.get(noun, f"{noun}s") for noun in (*chain, *others)}
        families |= dict.fromkeys(tuple(adjective for adjective, _, _ in choices) for choices in properties.values())
    return Names("true", concepts, [*families], [*_PEOPLE, *_NUMBERS])


NAMES = {
    "fictional": Names(
        "fictional",
        {noun: f"{noun}es" for noun in _FICTIONAL},
        [
            family.split()
            for family in (
                "blue red brown orange", "small large", "metallic wooden luminous liquid", "transparent opaque",
                "nervous happy feisty shy", "bright dull", "sweet sour spicy bitter", "floral fruity earthy",
                "hot cold temperate", "kind mean angry amenable aggressive",
            )
        ],
        _PEOPLE,
    ),
    "true": _true_names(),
}  # fmt: skip


MOST_HOPS = {"fictional": 10, "true": len(_CHAINS[0][0])}  # of a proof that can be drawn.


def most_premises(ontology: str, hops: int, distractors: str) -> int:
    """Premises of a problem, at most: links, properties, distractors, and the fact."""
    concepts = hops + _BEFORE + _AFTER + (_BRANCHES if distractors == "branches" else 0)
    return concepts + (concepts + 1 if ontology == "fictional" else 6)


def draw(generator: random.Random, ontology: str, hops: int, distractors: str) -> Question:
    """A random problem of so many hops: of a chain of concepts, with a property each, and what is beside it."""
    make = _fictional if ontology == "fictional" else _true
    entity, start, rules, asked, other = make(generator, hops, distractors)
    if distractors != "none":  # Else the one sentence that has what is asked would tell the answer.
        rules.append((other, asked[0], not asked[1]))
    forms = ("every", "each", "plural")
    premises = [Sentence(*rule, form=generator.choice(forms)) for rule in rules]
    premises.append(Sentence(entity, start))
    generator.shuffle(premises)
    return Question(premises, Sentence(entity, asked[0], generator.random() < 0.5))


_Rule = tuple[str, str, bool]
_Drawn = tuple[str, str, list[_Rule], tuple[str, bool], str]  # entity, its concept, rules, asked, another concept.


def _fictional(generator: random.Random, hops: int, distractors: str) -> _Drawn:
    names = NAMES["fictional"]
    concepts = generator.sample(list(names.concepts), len(names.concepts))
    families = generator.sample(names.families, len(names.families))
    before, after = generator.randint(0, _BEFORE), generator.randint(0, _AFTER)
    chain = [concepts.pop() for _ in range(before + hops + after)]
    rules = [(concept, parent, True) for concept, parent in itertools.pairwise(chain)]
    # Properties go first to the concepts of the proof, then to the others while there are families.
    way = chain[before : before + hops]
    described = [*reversed(way), *chain[:before], *chain[before + hops :]]
    if distractors == "branches":
        # A concept of the proof has a second parent, which leads nowhere.
        for concept in generator.sample(way, min(hops, generator.randint(1, _BRANCHES))):
            described.append(concepts.pop())
            rules.append((concept, described[-1], True))
    properties = {
        concept: (generator.choice(family), generator.random() < 0.6)
        for concept, family in zip(described, families, strict=False)
    }
    rules += [(concept, *property_) for concept, property_ in properties.items()]
    return generator.choice(names.entities), way[0], rules, properties[way[-1]], concepts.pop()


def _true(generator: random.Random, hops: int, distractors: str) -> _Drawn:
    """A part of a true chain, with properties of some of its concepts."""
    choices = [
        (chain, properties, entities, chain.index(concept))
        for chain, properties, entities in _CHAINS
        for concept in properties
        if chain.index(concept) >= hops - 1
    ]
    chain, properties, entities, end = generator.choice(choices)
    start = end - hops + 1
    part = chain[max(0, start - generator.randint(0, _BEFORE)) : end + 1 + generator.randint(0, _AFTER)]
    rules = [(concept, parent, True) for concept, parent in itertools.pairwise(part)]
    asked, holds, other = generator.choice(properties[chain[end]])
    rules.append((chain[end], asked, holds))
    for concept in part:
        if concept in properties and concept != chain[end]:
            adjective, is_so, elsewhere = generator.choice(properties[concept])
            described = [(concept, adjective, is_so), (elsewhere, adjective, not is_so)]
            rules += generator.sample(described[: 1 if distractors == "none" else 2], generator.randint(0, 1))
    return generator.choice(entities), chain[start], rules, (asked, holds), other
