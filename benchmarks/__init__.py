"""How fast, how large: `python -m benchmarks.run`, see docs/performance.md."""
