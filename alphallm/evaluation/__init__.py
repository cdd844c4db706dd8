"""Strategies that answer problems, at a given budget and in two modes, and what is told of them."""

from alphallm.evaluation.compare import Contestant, Row, evaluate, forecast, plan_all, solve_all
from alphallm.evaluation.plans import MODES, STRATEGIES, Strategy
from alphallm.evaluation.strategies import Result

__all__ = [
    "MODES",
    "STRATEGIES",
    "Contestant",
    "Result",
    "Row",
    "Strategy",
    "evaluate",
    "forecast",
    "plan_all",
    "solve_all",
]
