"""Blocksworld: plans that move blocks, one at a time, until a goal holds."""

from alphallm.tasks.blocksworld.blocksworld import Blocksworld, BlocksworldConfig

__all__ = ["Blocksworld", "BlocksworldConfig"]
