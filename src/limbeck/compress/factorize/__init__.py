"""A layer written as several thinner ones; `rank` says how thin."""

from ._ranks import VBMF, Budget, Energy, Fixed, Rank, Sensitivity

__all__ = ["VBMF", "Budget", "Energy", "Fixed", "Rank", "Sensitivity"]
