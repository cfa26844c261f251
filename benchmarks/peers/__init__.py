"""Ours and diffusers side by side, each in processes of its own: `python -m benchmarks.run --suite=peers`."""
