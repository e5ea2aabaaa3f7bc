"""What tools/bench runs: edgeseg against other quantizers, the memory of calibration, and single hot steps."""
