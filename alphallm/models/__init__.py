"""The transformer, its heads, and weights in and out. The only place that imports flax."""

from alphallm.models.transformer import Hidden, LanguageModel, ModelConfig

__all__ = ["Hidden", "LanguageModel", "ModelConfig"]
