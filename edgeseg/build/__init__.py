"""OnnxModel → what the target runs: the engines worth measuring, the first opening in a child, the choice."""
