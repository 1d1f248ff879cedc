"""What is written after a run on a GPU: a table of figures beside their targets, and a picture of the limits."""

import json
from pathlib import Path

from .suite import short_rate, short_share, short_time


def load_records(folder: Path) -> list[dict]:
    """The records of the suites in one device's folder."""
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    records = [record for content in contents for record in (content if isinstance(content, list) else [content])]
    return [record for record in records if "results" in record]


def write_summary(folder: Path, checks: dict) -> Path:
    """<folder>/summary.md: what ran, what failed, and every figure with its target."""
    where = checks["environment"]
    chip = where["gpu"]["name"] if where["gpu"] else f"{where['processor']} (a rehearsal: the figures mean nothing)"
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "triton", "python"))
    lines = [f"# {chip}", "", f"{versions}; {where['date']}; commit {where['commit']}.", "", "| step | | seconds | |"]
    lines.append("|---|---|---|---|")
    for step in checks["steps"]:
        counts = ", ".join(f"{value} {name}" for name, value in step["details"].items())
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {counts} |")
    failures = [f"- {step['name']}: `{line}`" for step in checks["steps"] for line in step["failures"]]
    lines += ["", "What failed:", "", *failures] if failures else ["", "Nothing failed."]
    for record in load_records(folder):
        lines += ["", f"## {record['suite']}", "", *_table(record)]
        lines += ["", f"Limits measured in the same run: {_limits(record['limits'])}."]
    path = folder / "summary.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _table(record: dict):
    peers = sorted({name for result in record["results"] for name in result["ratio"]})
    yield (
        "| case | pass | bigkern | backend | rate | of limit | " + " | ".join(f"vs {p}" for p in peers) + " | target |"
    )
    yield "|---" * (7 + len(peers)) + "|"
    for result in record["results"]:
        ratios = [f"{result['ratio'][peer]:.2f}x" if peer in result["ratio"] else "" for peer in peers]
        time = short_time(result["timings"]["bigkern"]["median_s"])
        cells = [result["case"], result["pass"], time, ", ".join(result["backends"]), short_rate(result)]
        yield f"| {' | '.join([*cells, short_share(result), *ratios, result['target']])} |"


def _limits(limits: dict) -> str:
    peaks = [f"{name} {rate / 1e3:.3g} TFLOP/s" for name, rate in limits["peak_gflops"].items()]
    copies = [f"copy {max(limits['copy_gbps'].values()):.0f} GB/s"] if limits["copy_gbps"] else []
    return ", ".join(peaks + copies) or "none was needed"


def write_roofline(folder: Path) -> Path | None:
    """<folder>/roofline.png: operations a second over operations a byte, under the limits; None without matplotlib or
    without a result that has both."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [
        record
        for record in load_records(folder)
        if record["limits"]["copy_gbps"] and any(result["flops"] and result["bytes"] for result in record["results"])
    ]
    if not records:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    bandwidth = max(max(record["limits"]["copy_gbps"].values()) for record in records)
    peaks = {name: peak for record in records for name, peak in record["limits"]["peak_gflops"].items()}
    for record in records:
        points = [result for result in record["results"] if result["flops"] and result["bytes"]]
        intensity = [result["flops"] / result["bytes"] for result in points]
        axes.scatter(intensity, [result["gflops"] / 1e3 for result in points], label=record["suite"], s=24)
    left, right = axes.get_xlim()
    reach = [max(left, 0.1), max(right, 10.0)]
    for name, peak in sorted(peaks.items()):
        knee = peak / bandwidth
        start = min(reach[0], knee)
        axes.plot([start, knee, max(reach[1], knee)], [start * bandwidth / 1e3, peak / 1e3, peak / 1e3], lw=1)
        axes.annotate(f"{name}: {peak / 1e3:.3g} TFLOP/s", (max(reach[1], knee), peak / 1e3), ha="right", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of compulsory traffic", ylabel="TFLOP/s")
    axes.set_title(f"Limits of this run: copy {bandwidth:.0f} GB/s and the fastest matrix products of PyTorch")
    axes.legend()
    path = folder / "roofline.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
