"""Programs that measure and print tables: `python -m benchmarks.loss`, `.evaluation`, `.gallery`, `.pipeline`, ..."""
