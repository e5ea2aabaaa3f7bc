"""The run that makes a trained network cheaper, read from `run` down; behind `edgeseg rewrite` and `build --rewrite`.

    wish       what it shall become            students   what its layers could become, and networks within a budget
    budgets    which options keep to a budget  layer_times, layer_graph   what an option takes on the target
    target     what it is rewritten for        offers     exact rewrites that only sometimes pay
    recovery   learning from the original      document   what was done and measured
    outputs    which part is deployed          journal    what a stopped run has measured, for the next
    build      the same inside of a build
    outputs    the scores among the outputs    journal    times kept beside a recovery

From Python: `from edgeseg.pipeline.rewriting import Budget, Wish, rewrite`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeseg.pipeline.rewriting.wish import Budget, Wish

if TYPE_CHECKING:
    from edgeseg.pipeline.rewriting.run import Rewritten as Rewritten
    from edgeseg.pipeline.rewriting.run import rewrite as rewrite

__all__ = ["Budget", "Rewritten", "Wish", "rewrite"]


def __getattr__(name: str) -> Any:
    if name in ("Rewritten", "rewrite"):  # they need torch
        from edgeseg.pipeline.rewriting import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
