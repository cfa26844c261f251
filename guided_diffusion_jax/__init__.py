"""Controllable image diffusion in JAX.

The layers, from the bottom: `typing`, `errors`; the mathematics (`schedules`, `prediction`, `gaussian`), the networks
(`models`) and the pictures (`data`); steering and sampling (`guidance`, `samplers`, `losses`); `denoisers`, where
network and mathematics meet, and `interop`; `training`; `commands`. Imports point only downwards.
"""

__version__ = "0.1.0"
