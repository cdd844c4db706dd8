"""From a budget to a strategy's knob: a budget is the largest number of tokens generated for one problem."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from alphallm.errors import UserError
from alphallm.search import SearchConfig

SAMPLED = ("best_of_n", "majority", "weighted", "pass_at_k")
BEAMS = ("value_greedy", "beam", "dvts")
_CHOICES = ("search_value", "search_majority", "search_weighted", "search_visited")
SEARCHES = (
    "search",
    *_CHOICES,
    "search_early",
    "puct",
    "alpha",
    "rollout",
    "rap",
    "depth_first",
    "search_listed",
    "search_uniform",
)
# Strategies that differ from another one only by the rule that picks the answer: (that one, a name in solutions.RULES).
RULE_OF = {"majority": ("best_of_n", "majority"), "weighted": ("best_of_n", "weighted")}
RULE_OF |= {name: ("search", name.removeprefix("search_")) for name in _CHOICES}
STRATEGIES = ("greedy", *SAMPLED, *BEAMS, *SEARCHES, "adaptive")
DEFAULT_STRATEGIES = ("greedy", "best_of_n", "majority", "value_greedy", "search", "search_uniform")
_LISTED = ("search_listed", "search_uniform")
_VERIFIED_ONLY = (*_LISTED, "pass_at_k")
_POLICIES: dict[str, Literal["puct", "uct", "depth_first"]] = {
    "puct": "puct", "alpha": "puct", "rollout": "puct", "rap": "uct", "depth_first": "depth_first"
}  # fmt: skip
MODES = ("verified", "value_only")
DEFAULT_BUDGETS = (300, 1000, 3000)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A strategy with its knob set: all that its compiled function depends on."""

    name: str  # one of STRATEGIES.
    mode: str  # one of MODES; "both" for greedy, which has nothing to choose.
    knob: int  # sampled chains, candidates of value_greedy, beams of others, simulations, mean tokens of `adaptive`.
    search: SearchConfig  # of a search, with the knob as its number of simulations; of others, what they use of it.

    @property
    def knob_text(self) -> str:
        """The knob in words."""
        if self.name == "greedy":
            return ""
        if self.name == "value_greedy":
            return f"K={self.knob}"
        if self.name in SAMPLED:
            return f"N={self.knob}"
        if self.name == "adaptive":
            return f"{self.knob} tokens on average"
        if self.name in BEAMS:
            return f"{self.knob} beams x {self.search.num_candidates}"
        width = "all legal" if self.search.proposer == "listed" else str(self.search.num_candidates)
        if self.search.root_proposer == "listed":
            width += ", root all legal"
        elif self.search.root_candidates > self.search.num_candidates:
            width += f", root {self.search.root_candidates}"
        return f"{self.knob} simulations x {width}"


def plan(task, search: SearchConfig, name: str, mode: str, budget: int) -> Strategy | None:
    """The strategy with the largest knob whose worst case stays within `budget`; None where it has no such mode.

    A chain costs at most D*L tokens, an expansion K*L. A search keeps D*L for the greedy answer that it falls back to.
    Listed steps are run through the model as if it had written them, and count like it.
    """
    check_names([name], STRATEGIES, "strategy")
    check_names([mode], MODES, "mode")
    search = for_mode(search, mode)
    if name in _VERIFIED_ONLY and mode != "verified":
        return None
    if mode not in modes(task) and name != "greedy":
        return None
    smallest = smallest_budget(task, search, name)
    if budget < smallest:
        raise UserError(
            f"{name} can not be run within {budget} generated tokens a problem: the smallest budget is {smallest}."
        )
    if name == "greedy":
        return Strategy("greedy", "both", 0, SearchConfig())
    if name in SEARCHES:
        left = budget - _chain(task)
        if name in _LISTED or search.proposer == "listed":
            root, later = _listed(task)
            return with_simulations(task, search, name, mode, (left - root) // later)
        search = _shaped(task, search, left // task.max_step, may_list=mode == "verified")
        return with_simulations(task, search, name, mode, search.num_simulations)
    if name == "adaptive":
        return Strategy(name, mode, budget, search)
    used = {name: getattr(search, name) for name in ("min_p", "value_scale", "visit_offset")}
    if name in ("beam", "dvts"):
        used["num_candidates"] = search.num_candidates
        # The first step is proposed for one beam, the others for each.
        first = search.num_candidates * task.max_step
        later = (task.max_steps - 1) * first
        return Strategy(name, mode, (budget - first) // later if later else 1, SearchConfig(**used))
    return Strategy(name, mode, budget // _chain(task), SearchConfig(**used))


def _shaped(task, search: SearchConfig, steps: int, may_list: bool) -> SearchConfig:
    """A search that proposes so many steps in all: its simulations, and the candidates of the root and of each.

    Two thirds go to simulations of half as many candidates as in self-play, as many as make whole answers; a third or
    so to the root, the one node that every answer goes through. Where that pays for all legal steps of the root and
    the search may know the rules, it lists them, and what is left of the share goes to more simulations.
    `experiments/LOG.md` has what it was chosen from.
    """
    each = max(1, task.max_steps - 1)  # simulations that make a root candidate an answer.
    later = -(-search.num_candidates // 2)
    simulations = each * max(1, round(steps * 2 / 3 / (each * later)))
    later = min(later, steps // (simulations + 1))
    root = steps - simulations * later
    if not may_list or root < task.max_legal_steps:
        return dataclasses.replace(
            search, num_simulations=simulations, num_candidates=later, root_candidates=root, root_proposer="same"
        )
    simulations = each * ((steps - task.max_legal_steps) // (each * later))
    return dataclasses.replace(
        search, num_simulations=simulations, num_candidates=later, root_candidates=0, root_proposer="listed"
    )


def with_simulations(task, search: SearchConfig, name: str, mode: str, simulations: int) -> Strategy:
    """A search with a given number of simulations, whatever it costs; without noise at the root.

    As many root candidates are considered as can become answers, each of which takes D - 1 simulations: the config's
    own number is self-play's, where the policy's target wants every one of a few searched well.
    """
    considered = max(1, simulations // max(1, task.max_steps - 1))
    search = for_mode(search, mode)
    config = dataclasses.replace(
        search, num_simulations=simulations, max_considered=considered, dirichlet_fraction=0.0,
        proposer="listed" if name in _LISTED else search.proposer,
    )  # fmt: skip
    if name in _POLICIES:
        config = dataclasses.replace(
            config, policy=_POLICIES[name], commit_every=0, rollout=name in ("rollout", "rap"),
            values="likelihood" if name == "rap" else "head",
        )  # fmt: skip
    if name == "alpha" or config.commit_every:
        # As many shares as moves: the last step's candidates are finished answers, below which nothing is searched.
        config = dataclasses.replace(config, commit_every=-(-simulations // max(1, task.max_steps - 1)))
    if name == "search_early":
        config = dataclasses.replace(config, early_stop=True)
    return Strategy(name, mode, simulations, config)


def modes(task) -> tuple[str, ...]:
    """The modes that a task allows at test time: verified only where it verifies itself."""
    return MODES if task.self_verifying else ("value_only",)


def smallest_budget(task, search: SearchConfig, name: str) -> int:
    """The smallest budget of a strategy: one chain, one beam, or what a search needs for an answer and a greedy one."""
    if name in ("beam", "dvts"):
        return _chain(task) * search.num_candidates
    if name not in (*SEARCHES, "adaptive"):
        return _chain(task)
    if name in _LISTED or search.proposer == "listed":
        root, later = _listed(task)
        return _chain(task) + root + max(1, task.max_steps - 1) * later
    return _chain(task) + max(2, task.max_steps) * task.max_step


def possible_budgets(task, search: SearchConfig, names: Sequence[str]) -> tuple[int, ...]:
    """The default budgets, without those that are too small for one of the strategies."""
    least = max(smallest_budget(task, search, name) for name in names)
    return tuple(budget for budget in DEFAULT_BUDGETS if budget >= least) or (least,)


def for_mode(search: SearchConfig, mode: str) -> SearchConfig:
    """Listing all legal steps knows the rules, so in `value_only` mode the policy proposes instead."""
    if mode == "verified":
        return search
    proposer = "gumbel_top_k" if search.proposer == "listed" else search.proposer
    return dataclasses.replace(search, proposer=proposer, root_proposer="same")


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"Unknown {what} {name!r}: give one or more of {', '.join(known)}.")


def _chain(task) -> int:
    return task.max_steps * task.max_step


def _listed(task) -> tuple[int, int]:
    """Tokens of all legal steps of a root and of a later node."""
    return task.max_legal_steps * task.max_step, task.max_later_steps * task.max_step
