"""Gumbel MuZero, PUCT and depth-first search in plain Python, one tree at a time, over an explicit tree of objects.

Slow and written from the papers (Danihelka et al. 2022; Silver et al. 2017), not from mctx: no arrays of nodes, no
page pool, no masks. A node's candidates come from a full prefill of all written so far: the paged cache is checked too.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from alphallm import decode
from alphallm.types import Problem


@dataclasses.dataclass
class Node:
    """A node of the explicit tree. A stand-in below a finished candidate has `known`, its worth."""

    history: list
    state: object
    depth: int
    index: int
    raw_value: float = 0.0
    known: float | None = None
    likelihood: float = 0.0
    visits: int = 1
    value: float = 0.0
    candidates: list = dataclasses.field(default_factory=list)

    def open(self):
        return [c for c in self.candidates if c.open]


@dataclasses.dataclass
class Candidate:
    tokens: tuple
    length: int
    logit: float
    prior: float
    gumbel: float
    own_value: float
    valid: bool
    done: bool
    reward: float
    state: object
    open: bool
    child: Node | None = None
    visits: int = 0
    likelihood: float = 0.0
    discount: float = 1.0
    log_prob: float = 0.0

    @property
    def q(self):
        """Mean outcome of the visits: all that a finished candidate gives is its own value."""
        return self.child.known if self.child.known is not None else self.discount * self.child.value


class Reference:
    """Searches one problem. `node_visits` and the like are read off `nodes` afterwards."""

    def __init__(self, model, task, config, params, problem, key, verified, masked):
        self.model, self.task, self.config, self.params = model, task, config, params
        self.key, self.verified, self.masked = key, verified, masked
        self.least = config.prune if config.policy == "depth_first" else 0.0
        self.nodes = [self.expand(list(problem.tokens_P[: problem.length]), problem.state, 0, 0)]
        root = self.nodes[0]
        self.budget = min(config.max_considered, len(root.candidates), len(root.open()))
        self.schedule = sequential_halving(self.budget, config.num_simulations)
        self.root, roots, self.rolling = root, [root], []
        for simulation in range(config.num_simulations):
            self.simulate(simulation)
            if config.commit_every and (simulation + 1) % config.commit_every == 0:
                self.commit()
                roots.append(self.root)
        self.moves = len({id(root) for root in roots}) - 1
        for old, new in reversed(list(itertools.pairwise(roots))):
            old.index, new.index = new.index, old.index
        self.root = self.nodes[0]

    def commit(self):
        """The root's most visited child becomes the root, with all below it. The two exchange their numbers."""
        child = self.root.candidates[self.final_action()].child
        if child is not None and child.known is None:
            self.root.index, child.index = child.index, self.root.index
            self.root = child

    def simulate(self, simulation):
        path = self.rolling
        node = path[-1][0] if path else self.root
        while not (path and (path[-1][1].child is None or len(path) == self.task.max_steps)):
            node = path[-1][1].child if path else self.root
            path.append((node, self.select(node)))
        node, candidate = path[-1]
        if candidate.child is None:
            candidate.child = self.child(node, candidate, simulation + 1)
            self.nodes.append(candidate.child)
        else:  # mctx makes the stand-in at the depth limit again.
            candidate.child.visits += 1
            self.nodes.append(None)
        self.rolling = []
        if self.config.rollout and candidate.child.known is None:
            best = max(candidate.child.candidates, key=self.preference)
            if best.open:  # The rollout goes on: nothing is backed up before it ends.
                candidate.child.visits = 0
                self.rolling = [*path, (candidate.child, best)]
                return
        outcome = candidate.child.value
        for node, candidate in reversed(path):
            known = candidate.child.known
            outcome = self.config.discount * outcome if known is None else known
            node.value = (node.value * node.visits + outcome) / (node.visits + 1)
            node.visits += 1
            candidate.visits += 1
        for _, candidate in reversed(path):
            if candidate.child.open():
                break
            candidate.open = False

    def preference(self, candidate):
        """What a rollout goes on by: log pi + sigma(value) before any visit; RAP's likelihoods alone."""
        if not candidate.valid:
            return -math.inf
        if self.config.values == "likelihood":
            return candidate.own_value
        sigma = self.config.visit_offset * self.config.value_scale
        return candidate.log_prob + sigma * candidate.own_value

    def child(self, node, candidate, index):
        depth = node.depth + 1
        if candidate.done or not candidate.valid or depth == self.task.max_steps:
            return Node([], None, depth, index, known=candidate.own_value, candidates=[nothing()])
        history = node.history + list(candidate.tokens[: candidate.length])
        return self.expand(history, candidate.state, depth, index, node.likelihood + candidate.likelihood)

    def expand(self, history, state, depth, index, likelihood=0.0) -> Node:
        """`likelihood` is the sum of the steps' on the way."""
        node = Node(history, state, depth, index, likelihood=likelihood)
        prefix, got = propose(self.model, self.task, self.config, self.params, history, state, self.key, index)
        prior_logits = got.log_prob_BK if self.config.prior == "policy" else got.prior_logits_BK
        likeliest = float(jnp.exp(jnp.max(jnp.where(got.valid_BK, got.log_prob_BK, -jnp.inf))))
        for k in range(got.valid_BK.shape[1]):
            tokens, length = tuple(map(int, got.tokens_BKL[0, k])), int(got.length_BK[0, k])
            after, reward, done, legal = self.task.plain_step(state, tokens, length)
            likely = float(jnp.exp(got.log_prob_BK[0, k])) >= self.config.min_p * likeliest
            valid = bool(got.valid_BK[0, k]) and (legal if self.masked else likely)
            step = math.exp(float(got.log_prob_BK[0, k]) / max(1, length))
            read = float(got.value_BK[0, k]) if self.config.values == "head" else (likelihood + step) / (depth + 1)
            own = reward if self.verified and done else read if done else self.config.discount * read
            own = own if valid else 0.0
            node.candidates.append(
                Candidate(
                    tokens, length, float(prior_logits[0, k]) if valid else decode.LOG_ZERO, 0.0,
                    float(got.root_gumbel_BK[0, k]), own, valid, done, reward, after,
                    valid and not done and depth + 1 < self.task.max_steps and own >= self.least, likelihood=step,
                    discount=self.config.discount, log_prob=float(got.log_prob_BK[0, k]),
                )
            )  # fmt: skip
        for c, p in zip(node.candidates, softmax([c.logit for c in node.candidates]), strict=True):
            c.prior = p
        node.raw_value = float(prefix.value_B[0])
        if self.config.values == "likelihood":
            node.raw_value = likelihood / max(1, depth)
        node.value = self.node_value(node, node.raw_value)
        return node

    def node_value(self, node, head):
        """What a new node backs up."""
        valid = [c for c in node.candidates if c.valid]
        if not valid:
            return 0.0
        children = sum(c.prior * c.own_value for c in valid) / sum(c.prior for c in valid)
        value = {"value": head, "children": children, "both": (head + children) / 2}[self.config.backup]
        return max([value] + [c.reward for c in valid if self.verified and c.done])

    def completed(self, node) -> list[float]:
        """Completed Q (Danihelka et al. 2022, section 4): what each candidate is worth as far as is known."""
        if self.config.completion == "child_value":
            return [c.q if c.visits else c.own_value for c in node.candidates]
        seen = [c for c in node.candidates if c.visits and c.valid]
        mean = sum(c.prior * c.q for c in seen) / sum(c.prior for c in seen) if seen else 0.0
        total = sum(c.visits for c in node.candidates)
        mixed = (node.raw_value + total * mean) / (1 + total)  # equation 33.
        return [
            c.q if c.visits else c.own_value if c.done or not c.valid else mixed for c in node.candidates
        ]  # fmt: skip

    def sigma(self, node) -> list[float]:
        most = max(c.visits for c in node.candidates)
        return [(self.config.visit_offset + most) * self.config.value_scale * q for q in self.completed(node)]

    def select(self, node) -> Candidate:
        if not any(c.valid for c in node.candidates):
            # Below the end of an answer, or where nothing may be chosen, all is one.
            return node.candidates[0]
        if self.config.policy == "puct":
            return self.puct(node)
        if self.config.policy == "uct":
            return self.uct(node)
        if self.config.policy == "depth_first":
            return self.deeper(node)
        return self.halve(node) if node is self.nodes[0] else self.improve(node)

    def halve(self, root):
        """Sequential halving: the best by g + logits + sigma(q) among those that have the visits whose turn it is.

        A candidate that is known exactly takes no more part; where it leaves a gap, the best open one steps in.
        """
        done = sum(c.visits for c in root.candidates)
        among = root.open() or [c for c in root.candidates if c.valid]
        among = [c for c in among if c.visits == self.schedule[done]] or among
        score = dict(zip(map(id, root.candidates), self.scores(root), strict=True))
        return max(among, key=lambda c: score[id(c)])

    def scores(self, root):
        return [c.gumbel + c.logit + s for c, s in zip(root.candidates, self.sigma(root), strict=True)]

    def improve(self, node):
        """Deterministic selection that follows the improved policy (section 5), over what is open, if anything is."""
        among = node.open() or [c for c in node.candidates if c.valid]
        sigma = dict(zip(map(id, node.candidates), self.sigma(node), strict=True))
        improved = softmax([c.logit + sigma[id(c)] for c in among])
        total = sum(c.visits for c in among)
        return max(zip(among, improved, strict=True), key=lambda x: x[1] - x[0].visits / (1 + total))[0]

    def deeper(self, node):
        """On with what was begun; else the best by the value head's word or, where it is verified, the reward."""
        among = node.open() or [c for c in node.candidates if c.valid]
        return next((c for c in among if c.visits), max(among, key=lambda c: c.own_value))

    def puct(self, node):
        among = node.open() or [c for c in node.candidates if c.valid]
        rate = self.config.exploration + math.log((node.visits + 19652 + 1) / 19652)
        q = self.completed(node)
        total = sum(n.visits for n in self.nodes if n)
        key = jax.random.fold_in(jax.random.fold_in(self.key, total), node.index)
        tie = 1e-7 * np.asarray(jax.random.uniform(key, (len(q),)))
        score = {
            id(c): q[i] + math.sqrt(node.visits) * rate * c.prior / (1 + c.visits) + tie[i]
            for i, c in enumerate(node.candidates)
        }
        return max(among, key=lambda c: score[id(c)])

    def uct(self, node):
        """RAP's: an unvisited candidate counts with its own value and as if visited once."""
        among = node.open() or [c for c in node.candidates if c.valid]
        q = {id(c): value for c, value in zip(node.candidates, self.completed(node), strict=True)}
        bonus = lambda c: math.sqrt(math.log(max(1, node.visits)) / max(1, c.visits))
        return max(among, key=lambda c: q[id(c)] + self.config.exploration * bonus(c))

    def final_action(self) -> int:
        root = self.root
        valid = [i for i, c in enumerate(root.candidates) if c.valid]
        if not valid:
            return 0
        if self.config.policy in ("puct", "uct"):
            q = self.completed(root)
            return max(valid, key=lambda i: root.candidates[i].visits + 0.5 * q[i])
        if self.config.policy == "depth_first":
            return max(valid, key=lambda i: self.completed(root)[i])
        scores, most = self.scores(root), max(c.visits for c in root.candidates)
        candidates = [i for i in valid if not root.candidates[i].open or root.candidates[i].visits == most]
        return max(candidates or valid, key=lambda i: scores[i])


def nothing() -> Candidate:
    """What is below a finished candidate."""
    return Candidate((), 0, 0.0, 0.0, 0.0, 0.0, False, True, 0.0, None, False)


def sequential_halving(considered: int, simulations: int) -> list[int]:
    """The visit count whose turn it is, simulation by simulation (Danihelka et al. 2022, figure 1)."""
    if considered <= 1:
        return list(range(simulations))
    phases, visits, turns = math.ceil(math.log2(considered)), [0] * considered, []
    while len(turns) < simulations:
        for _ in range(max(1, simulations // (phases * considered))):
            turns += visits[:considered]
            visits[:considered] = [v + 1 for v in visits[:considered]]
        considered = max(2, considered // 2)
    return turns[:simulations]


def softmax(x):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max())
    return e / e.sum()


def propose(model, task, config, params, history, state, key, index):
    """A node's prefix and candidates, from a full prefill of its history."""
    tokens = np.zeros(task.max_prompt + task.max_steps * task.max_step, np.int32)
    tokens[: len(history)] = history
    key = jax.random.fold_in(key, index)
    num = config.num_candidates if index else max(config.root_candidates, config.num_candidates)
    listed = config.proposer == "listed" or (index == 0 and config.root_proposer == "listed")
    compiled = _compiled_propose(model, task, config, num, listed)
    return jax.device_get(compiled(params, tokens, len(history), state, key))


@functools.cache
def _compiled_propose(model, task, config, num, listed):
    @jax.jit
    def run(params, tokens, length, state, key):
        problem = Problem(tokens[None], jnp.asarray(length)[None], None, jnp.zeros(1, jnp.int32))
        prefix = decode.prefill(model, params, problem)
        common = {"step_end_SV": jnp.asarray(task.vocabulary.step_end_SV), "pad": task.vocabulary.pad}
        if listed:
            steps = jax.tree.map(lambda x: x[None], task.legal_steps(state))
            return prefix, decode.listed(model, params, prefix, key[None], steps=steps, **common)
        common |= {"num": num, "max_length": task.max_step}
        if config.proposer == "iid":
            common["temperature"] = config.temperature
        return prefix, getattr(decode, config.proposer)(model, params, prefix, key[None], **common)

    return run
