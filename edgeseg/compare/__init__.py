"""Whether a new engine is worse than the one before: a verdict with its uncertainty for every metric, and a gate."""

from edgeseg.compare.comparison import SCHEMA, compare

__all__ = ["SCHEMA", "compare"]
