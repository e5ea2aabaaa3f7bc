"""Where masks go."""
