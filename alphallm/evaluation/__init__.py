"""Methods that answer problems, at a given budget and in two modes, and what is told of them."""

from alphallm.evaluation.compare import Contestant, Row, evaluate, plan_all, solve_all
from alphallm.evaluation.methods import Result
from alphallm.evaluation.plans import METHODS, MODES, Method

__all__ = ["METHODS", "MODES", "Contestant", "Method", "Result", "Row", "evaluate", "plan_all", "solve_all"]
