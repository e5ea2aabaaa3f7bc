"""Which convolutions stay in float so that an INT8 network keeps its accuracy, at the least cost in time.

sensitivity  what each of them loses in INT8, emulated for any engine's dialect
times        what each costs in float, measured on the runtime
steps        the search itself, over (damage, milliseconds): pure
run          both sides of the bargain, measured: `search`
build        the search in a build: `mixed_for`
"""

from edgeseg.pipeline.search.candidates import Candidate
from edgeseg.pipeline.search.floor import Floor, Outcome
from edgeseg.pipeline.search.run import Found, search

__all__ = ["Candidate", "Floor", "Found", "Outcome", "search"]
