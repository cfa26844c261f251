"""Configurations: each file has a `get_config()`; `default.py` holds every key, the others change some."""
