"""The approximate rules by name, one file each: what a layer may become, and how the weights of that are found."""

from __future__ import annotations

from edgeseg.rewrite.rule import Rule

RULES: dict[str, Rule] = {}
