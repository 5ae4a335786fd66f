"""Programs that measure: `python -m benchmarks.loss`, `.evaluation`, `.pipeline`, `.scaling`; each prints its tables."""
