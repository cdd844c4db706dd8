"""Monte Carlo tree search over steps of text, compiled through mctx. The only place that imports mctx."""

from alphallm.search.tree import Answer, SearchConfig, Tree, best_answer
from alphallm.search.tree_search import search

__all__ = ["Answer", "SearchConfig", "Tree", "best_answer", "search"]
