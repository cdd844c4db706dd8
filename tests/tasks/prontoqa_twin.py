"""A plain-Python twin of PrOntoQA's rules: sentences are strings, what is known is a set of them.

It shares the words of a problem with the compiled verifier and nothing else: it splits the text at its full stops, and
looks a step up among the sentences that follow from what is known by one rule.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TwinState:
    rules: tuple[tuple[str, str], ...]  # "stella is a wumpus ." and what follows of it, "stella is not red ."
    known: frozenset[str]
    query: str
    right: str  # "true" or "false".
    steps_done: int = 0
    chain_legal: bool = True
    done: bool = False


def twin_problem(text: str, singular: dict[str, str]) -> TwinState:
    """The state of a problem in words; `singular` is that of each plural."""
    premises, query = text.split(" true or false : ")
    entity, rules, known = query.split()[0], [], set()
    for sentence in premises.removesuffix(" .").split(" . "):
        words = sentence.split()
        if "are" in words:
            words = words[words[0] == "all" :]
            noun, predicate = singular[words[0]], singular.get(words[-1], words[-1])
        elif words[0] in ("every", "each"):
            noun, predicate = words[1], words[-1]
        else:
            known.add(f"{sentence} .")
            continue
        rules.append((said(entity, noun, singular), said(entity, predicate, singular, "not" in words)))
    after = closure(rules, known)
    assert (query in after) + (opposite(query) in after) == 1, text
    return TwinState(tuple(rules), frozenset(known), query, "true" if query in after else "false")


def said(entity: str, predicate: str, singular: dict[str, str], negated: bool = False) -> str:
    words = [entity, "is", "not" if negated else "", predicate, "."]
    if predicate in singular.values():
        words.insert(3, "an" if predicate[0] in "aeiou" else "a")
    return " ".join(filter(None, words))


def opposite(sentence: str) -> str:
    return sentence.replace(" not ", " ") if " not " in sentence else sentence.replace(" is ", " is not ")


def closure(rules, known) -> set[str]:
    """All that follows."""
    known = set(known)
    while new := {consequent for antecedent, consequent in rules if antecedent in known} - known:
        known |= new
    return known


def derivable(state: TwinState) -> set[str]:
    """What follows by one rule and is not known yet."""
    return {consequent for antecedent, consequent in state.rules if antecedent in state.known} - state.known


def legal_texts(state: TwinState) -> set[str]:
    return set() if state.done else {f"{line}\n" for line in (*derivable(state), "true", "false")}


def twin_step(task, state: TwinState, tokens, length: int) -> tuple[TwinState, bool, float, bool]:
    """(new state, legal, reward, done) of the first `length` of `tokens`."""
    if state.done:
        return state, False, 0.0, True
    text = _text(task, tokens, length)
    legal = text in legal_texts(state)
    answered = legal and text in ("true\n", "false\n")
    proved = state.query in state.known or opposite(state.query) in state.known
    new = dataclasses.replace(
        state,
        known=state.known | ({text.strip()} if legal and not answered else set()),
        steps_done=state.steps_done + 1,
        chain_legal=state.chain_legal and legal,
        done=answered or state.steps_done + 1 >= task.max_steps,
    )
    return new, legal, float(answered and new.chain_legal and proved and text == f"{state.right}\n"), new.done


def _text(task, tokens, length: int) -> str:
    """A step's text; "" where the tokens are no text, as the start token."""
    if not 1 <= length <= len(tokens):
        return ""
    tokens = [int(token) for token in tokens[:length]]
    text = task.vocabulary.decode(tokens)
    return text if task.vocabulary.encode(text) == tokens else ""


def fewest_steps(state: TwinState) -> int:
    """How few sentences derive the query or its opposite, by trying every chain of legal sentences."""
    level, steps = {state.known}, 0
    while not any(state.query in known or opposite(state.query) in known for known in level):
        states = [dataclasses.replace(state, known=known) for known in level]
        level = {each.known | {sentence} for each in states for sentence in derivable(each)}
        steps += 1
        assert level, "nothing follows any more"
    return steps
