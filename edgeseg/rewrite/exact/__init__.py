"""Rewrites that change nothing but the work: each gives the same output as before, up to rounding, and is proven so."""
