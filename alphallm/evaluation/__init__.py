"""Methods that answer problems, at a given budget and in two modes, and what is told of them."""

from alphallm.evaluation.compare import Contestant, Row, evaluate, evaluate_batch, solve_all
from alphallm.evaluation.methods import Result, answer
from alphallm.evaluation.plans import METHODS, MODES, Method, plan, with_simulations

__all__ = [
    "METHODS", "MODES", "Contestant", "Method", "Result", "Row", "answer", "evaluate", "evaluate_batch", "plan",
    "solve_all", "with_simulations",
]  # fmt: skip
