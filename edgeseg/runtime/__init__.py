"""`edgeseg stream`: frames from sources through an engine to sinks, measured while it runs."""
