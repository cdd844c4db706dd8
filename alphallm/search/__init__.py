"""Monte Carlo tree search over steps of text, compiled through mctx. The only place that imports mctx."""

from alphallm.search.tree import CERTAIN, Answer, SearchConfig, Tree, best_answer
from alphallm.search.tree_search import search

__all__ = ["CERTAIN", "Answer", "SearchConfig", "Tree", "best_answer", "search"]
