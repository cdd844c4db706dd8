"""iGSM: grade-school problems whose quantities depend on each other, counted modulo 23."""

from alphallm.tasks.igsm.igsm import Igsm, IgsmConfig

__all__ = ["Igsm", "IgsmConfig"]
