"""Report of a run, or of three ways of steering compared: one self-contained HTML page, from plain data."""

from guided_diffusion_jax.report.page import html, markdown, write
from guided_diffusion_jax.report.results import Neighbors, Point, Results, Samples, Trajectory, points
from guided_diffusion_jax.report.sections import build

__all__ = ["Neighbors", "Point", "Results", "Samples", "Trajectory", "build", "html", "markdown", "points", "write"]
