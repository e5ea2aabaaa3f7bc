"""`edgeseg stream`: frames from sources through an engine to sinks, measured while it runs.

streaming.py          the whole, from top to bottom; options.py what can be asked of it
sources/, capture.py  where frames come from; opened again when they break
flow.py, exchange.py  the threads, and what passes frames between them
overlay.py, sinks/, serve/   where masks go
score.py, watch.py, shares.py, tally.py   what is measured; document.py says it
"""
