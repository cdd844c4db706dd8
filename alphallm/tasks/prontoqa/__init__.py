"""PrOntoQA: proofs by deduction in generated ontologies."""

from alphallm.tasks.prontoqa.prontoqa import Prontoqa, ProntoqaConfig

__all__ = ["Prontoqa", "ProntoqaConfig"]
