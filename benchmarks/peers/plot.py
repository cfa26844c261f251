"""The ratios of a run of the suite as a figure: how many times as fast ours is, by program."""

from pathlib import Path
from typing import Any

from benchmarks.peers.suite import COMPILED, EAGER
from benchmarks.peers.worker import MATMUL, OURS

MARKS = {EAGER: ("C0", "o"), COMPILED: ("C1", "s")}
"""Colour and marker of what ours is compared with."""


def plot(report: dict[str, Any], path: Path) -> None:
    """Writes the figure: medians with their ranges, a panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    cases = [case["name"] for case in report["cases"]]
    figure, panels = pyplot.subplots(
        1, len(cases), figsize=(2 + 4 * len(cases), 3.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(panels[0], cases, strict=True):
        for row, (side, (colour, marker)) in enumerate(MARKS.items()):
            ending = f": {side} / {OURS}"
            ratios = {
                r["name"].removesuffix(ending): r
                for r in report["ratios"]
                if r["case"] == name and r["name"].endswith(ending) and not r["name"].startswith(MATMUL)
            }
            medians = [r["median"] for r in ratios.values()]
            ranges = [
                [r["median"] - r["min"] for r in ratios.values()],
                [r["max"] - r["median"] for r in ratios.values()],
            ]
            places = [place + 0.12 - 0.24 * row for place in range(len(ratios), 0, -1)]
            axis.errorbar(medians, places, xerr=ranges, color=colour, marker=marker, linestyle="", label=side)
            axis.set_yticks(range(len(ratios), 0, -1), list(ratios))
        axis.axvline(1, color="0.5", linewidth=1)
        axis.set(title=name, xlabel="ours is so many times as fast", xscale="log")
        axis.xaxis.set_major_locator(ticker.FixedLocator([0.5, 0.75, 1, 1.5, 2, 3]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(axis="x", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)
