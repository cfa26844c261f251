"""Tables that a run prints, in Markdown."""

from collections.abc import Sequence
from typing import Any


def tables(report: dict[str, Any]) -> str:
    """Formats machine, ratios and measurements of a run's JSON."""
    m = report["machine"]
    device = "" if m["backend"] == "cpu" else f", {m['devices']} x {m['device_kind']}"
    commit = f", commit {m['commit']}" if m["commit"] else ""
    machine = (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB{device}; "
        f"Python {m['python']}, jax {m['jax']}, jaxlib {m['jaxlib']}, flax {m['flax']}{commit}; "
        f"load average {m['load_average'][0]:.1f} at the start. Made by `{report['command']}` in "
        f"{report['seconds']:.0f} s."
    )
    cases = [
        f"- {c['name']}: {c['parameters']:,} parameters, batch {c['batch']}"
        + (", with " + ", ".join(f"{key}={value}" for key, value in c["overrides"].items()) if c["overrides"] else "")
        for c in report["cases"]
    ]
    ratios = [
        (r["case"], r["name"], f"{r['median']:.2f}", f"{r['min']:.2f} to {r['max']:.2f}", str(r["rounds"]))
        for r in report["ratios"]
    ]
    measurements = [
        (
            r["case"],
            r["program"],
            str(r["batch"]),
            f"{r['images_per_second']:.3g}",
            f"{1e3 * r['seconds']['median']:.4g}",
            f"{r['lower_seconds']:.1f} + {r['compile_seconds']:.1f}",
            f"{r['program_bytes'] / 2**20:.0f}",
            *([] if r["device_peak_bytes"] is None else [f"{r['device_peak_bytes'] / 2**20:.0f}"]),
        )
        for r in report["measurements"]
    ]
    head = ("case", "program", "batch", "images/s", "ms", "trace + compile, s", "program, MiB", "device's peak, MiB")
    return "\n\n".join(
        [
            machine,
            "\n".join(cases),
            markdown(("case", "ratio", "median", "range", "rounds"), ratios),
            markdown(head[: len(measurements[0])], measurements),
        ]
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
