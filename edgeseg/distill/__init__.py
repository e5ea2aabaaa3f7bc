"""Recovery: a rewritten network learns from the one it came from, on frames that need no labels."""
