"""limbeck: turn a big model into a small one that ships, and prove what was kept and what was lost."""

__version__ = "0.1.0"
