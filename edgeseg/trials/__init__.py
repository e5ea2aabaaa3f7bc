"""OnnxModel → what this machine runs: engines worth measuring, their first opening in a child, the race, the choice."""
