"""What an exact rewrite says that it did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the graph after which the network computes what it computed before, up to rounding."""

    rule: str  # the file's name in edgeseg.rewrite.exact
    layers: tuple[str, ...]  # names of the modules that were there before
    says: str  # one line for people
    macs_before: int  # multiplications for one image, of the convolutions and linear layers among `layers`
    macs_after: int  # of what stands in their place
