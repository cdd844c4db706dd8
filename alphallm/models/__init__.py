"""The transformer, its heads, and weights in and out. The only place that imports flax."""

from alphallm.models.transformer import Hidden, LanguageModel, LoraConfig, ModelConfig

__all__ = ["Hidden", "LanguageModel", "LoraConfig", "ModelConfig"]
