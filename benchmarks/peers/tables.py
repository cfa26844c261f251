"""Tables of a run of the suite, in Markdown."""

from typing import Any

from benchmarks.peers.suite import EAGER
from benchmarks.peers.worker import FORWARD, MATMUL, OURS, matmul_size
from benchmarks.report import markdown

GIB = 2**30


def tables(report: dict[str, Any]) -> str:
    """Formats the machine, the networks, ratios, speed, starts and memory of a run's JSON."""
    cases = {case["name"]: case for case in report["cases"]}
    sides = [(name, side, about) for name, case in cases.items() for side, about in case["sides"].items()]
    m, peer = sides[0][2]["machine"], cases[sides[0][0]]["sides"][EAGER]
    device = "" if m["backend"] == "cpu" else f", {m['device_kind']}"
    machine = (
        f"{m['cpu']}, {m['cores']} cores{device}; Python {m['python']}, jax {m['jax']}, flax {m['flax']}; "
        f"torch {peer['torch']} with {peer['threads']} threads, diffusers {peer['diffusers']}; load average "
        f"{m['load_average'][0]:.1f}. Made by `{report['command']}` in {report['seconds']:.0f} s."
    )
    networks = [
        f"- {name}: {case['sides'][OURS]['parameters']:,} and {case['sides'][EAGER]['parameters']:,} parameters (ours, "
        f"diffusers), batch {case['work']['batch_size']}, in sampling {case['work']['images']}; "
        + ", ".join(f"{key}={value}" for key, value in case["changes"].items())
        for name, case in cases.items()
    ]
    skipped = [f"- left out: {s['case']}, {s['side']}, {s['program']}: {s['error']}" for s in report["skipped"]]
    ratios = [
        (r["case"], r["name"], f"{r['median']:.2f}", f"{r['min']:.2f} to {r['max']:.2f}", str(r["rounds"]))
        for r in report["ratios"]
    ]
    speed = [
        (r["case"], r["program"], r["side"], str(r["batch"]), f"{1e3 * r['seconds']['median']:.4g}", *work(r, report))
        for r in report["measurements"]
        if r["program"] != MATMUL
    ]
    starts = [
        (r["case"], r["side"], r["caches"], *(f"{r[part]:.1f}" for part in ("imports", "build", "first_step", "total")))
        for r in report["starts"]
    ]
    memory = [
        (
            name, side, f"{about['flops_per_image'][FORWARD] / 1e9:.3g}", f"{about['host_peak_bytes'] / GIB:.2f}",
            f"{about['device_peak_bytes'] / GIB:.2f}" if about["device_peak_bytes"] else "",
        )
        for name, side, about in sides
        if "flops_per_image" in about
    ]  # fmt: skip
    return "\n\n".join(
        [
            machine,
            "\n".join(networks + skipped),
            markdown(("case", "ratio of seconds", "median", "range", "rounds"), ratios),
            markdown(("case", "program", "side", "batch", "ms", "GFLOP/s", "of the matmul peak"), speed),
            markdown(("case", "side", "caches", "imports, s", "build, s", "first step, s", "in total, s"), starts),
            markdown(("case", "side", "forward, GFLOP/image", "host's peak, GiB", "device's peak, GiB"), memory),
        ]
    )


def work(row: dict[str, Any], report: dict[str, Any]) -> tuple[str, str]:
    """GFLOP/s of one of our programs and their share of the larger of the sides' matmul rates; blanks for others."""
    sides = next(case for case in report["cases"] if case["name"] == row["case"])["sides"]
    flops = sides[OURS]["flops_per_image"].get(row["program"])
    if row["side"] != OURS or flops is None:
        return "", ""
    size, length = matmul_size(sides[OURS]["machine"]["backend"])
    fastest = min(
        r["seconds"]["median"] for r in report["measurements"] if (r["case"], r["program"]) == (row["case"], MATMUL)
    )
    rate = flops * row["images_per_second"]
    return f"{rate / 1e9:.1f}", f"{rate / (2 * size**3 * length / fastest):.0%}"
