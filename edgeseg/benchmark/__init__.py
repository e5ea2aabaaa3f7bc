"""Speed of bundles: what `edgeseg bench` measures and writes. Several bundles take turns.

plan        what to measure, checked               scenarios   how queries come, on callables and a clock
opened      engines and the frames to time with    offline     throughput, and the way that gives most of it
run         `bench` itself                         roofline    how near to this machine's peak each layer is
stability   whether clocks and load stayed
"""

from __future__ import annotations

from edgeseg.benchmark.plan import SCENARIOS, Plan, Scenario
from edgeseg.benchmark.run import bench, frames_from, measure

__all__ = ["SCENARIOS", "Plan", "Scenario", "bench", "frames_from", "measure"]
