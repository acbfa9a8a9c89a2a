"""The results as a table on the screen, as a bar chart, and as a page of the documentation."""

import statistics
from pathlib import Path
from typing import Any

from machine import heading, markdown

HEAD = (
    "ms: median (first and third quartile). %: share of the matmul rate measured in the same rounds, with our model's\n"
    "multiply-adds for every side. x: the peer's time over ours, in turn; above 1, ours is faster. Two calls of each\n"
    "side warm up, and one before each that is timed.\n"
)


def table(results: dict[str, Any]) -> str:
    """One line a measure and side."""
    lines = [HEAD]
    for pair, found in results.items():
        counts = ", ".join(f"{name} {count:,}" for name, count in found["parameters"].items())
        lines.append(f"{pair}  parameters: {counts}; load {found['load']:.1f}")
        for row in found["measures"]:
            low, rate, high = (value / 1e9 for value in row["matmul_rate"])
            lines.append(f"  {row['measure']}, {row['runs']} rounds, matmul {rate:.0f} ({low:.0f}, {high:.0f}) GFLOP/s")
            for name, seconds in row["seconds"].items():
                low, median, high = (1000 * value for value in seconds)
                text = f"    {name:22}{median:9.1f} ({low:.1f}, {high:.1f}) ms {row['share_of_matmul_rate'][name]:6.0%}"
                if name in row["times_faster_than"]:
                    low, median, high = row["times_faster_than"][name]
                    text += f"  {median:6.2f} ({low:.2f}, {high:.2f}) x"
                lines.append(text)
        for name, alone in found.get("cold", {}).items():
            lines.append(
                f"    {name:22}first result {alone['first_result']:.1f} s, first training step "
                f"{alone['first_training_step']:.1f} s, peak memory {alone['peak_memory'] / 2**20:,.0f} MiB"
            )
        lines += [f"    {name}: {error}" for name, error in found["errors"].items()]
    return "\n".join(lines)


def is_same_model(found: dict[str, Any], peer: str) -> bool:
    """Whether the peer's model is ours by its number of parameters, to 2 %: by its name alone it need not be."""
    counts = found["parameters"]
    return abs(counts[peer] / counts["eqx_vit"] - 1) < 0.02


def page(results: dict[str, Any], machine: dict[str, Any]) -> str:
    """The tables in Markdown. What the peer's model of the same name is not the same of stands apart."""
    rows: list[list[str]] = []
    apart: list[list[str]] = []
    cold: list[list[str]] = []
    means: dict[tuple[str, str, str], list[float]] = {}
    for pair, found in results.items():
        setting = "calls of the README" if pair.endswith("-seed") else "presets"
        for row in found["measures"]:
            ours = row["seconds"].get("eqx_vit")
            for peer, ratio in row["times_faster_than"].items():
                line = [pair, row["measure"], f"{1000 * ours[1]:.1f}", peer, f"{1000 * row['seconds'][peer][1]:.1f}"]
                line.append(f"{ratio[1]:.2f} ({ratio[0]:.2f}, {ratio[2]:.2f})")
                if is_same_model(found, peer):
                    rows.append(line)
                    means.setdefault((setting, row["measure"], peer), []).append(ratio[1])
                else:
                    counts = found["parameters"]
                    apart.append([*line, f"{counts['eqx_vit'] / 1e6:.1f} M, {counts[peer] / 1e6:.1f} M"])
        for side, alone in found.get("cold", {}).items():
            peak = f"{alone['peak_memory'] / 2**20:,.0f}"
            cold.append([pair, side, f"{alone['first_result']:.1f}", f"{alone['first_training_step']:.1f}", peak])
    columns = ["model", "measure", "eqx_vit, ms", "peer", "its ms", "times faster (quartiles)"]
    mean_rows = [
        [*key, str(len(values)), f"{statistics.geometric_mean(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"]
        for key, values in sorted(means.items())
    ]
    rate = statistics.median(row["matmul_rate"][1] for found in results.values() for row in found["measures"])
    parts = [
        heading("Every architecture", machine, rate),
        "Geometric means of how many times faster eqx_vit is, over the pairs whose models are the same:\n",
        markdown(["setting", "measure", "peer", "models", "times faster", "least", "most"], mean_rows),
        "Each pair, medians of rounds in turn:\n",
        markdown(columns, rows),
    ]
    if apart:
        parts.append(
            "Of these the peer's model of the same name has another number of parameters (ours, theirs): the\n"
        )
        parts[-1] += "ratios say nothing of speed, and are in no mean.\n"
        parts.append(markdown([*columns, "parameters"], apart))
    if cold:
        parts.append(
            "From cold, each side in a process of its own: seconds from the start to the first logits and for\n"
        )
        parts[-1] += "the first training step, and the peak of memory after two of them.\n"
        parts.append(markdown(["model", "side", "first result, s", "first training step, s", "peak, MiB"], cold))
    errors = [f"- {pair}, {name}: {text}" for pair, found in results.items() for name, text in found["errors"].items()]
    return "\n".join([*parts, *(["Not run:\n", *errors, ""] if errors else [])])


def chart(results: dict[str, Any], path: Path) -> None:
    """For each measure, how many times faster than each peer, with the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    bars: dict[str, list[tuple[str, list[float]]]] = {}
    for pair, found in results.items():
        for row in found["measures"]:
            for name, ratio in row["times_faster_than"].items():
                bars.setdefault(row["measure"], []).append((f"{pair}, {name}", ratio))
    if not bars:
        return
    tallest = max(map(len, bars.values()))
    figure, axes = plt.subplots(1, len(bars), figsize=(7 * len(bars), 1 + 0.25 * tallest), squeeze=False)
    for axis, (measure, entries) in zip(axes[0], bars.items(), strict=True):
        labels, ratios = zip(*reversed(entries), strict=True)
        spread = [[m - low for low, m, _ in ratios], [high - m for _, m, high in ratios]]
        colours = ["tab:blue" if ratio[1] >= 1 else "tab:orange" for ratio in ratios]
        drawn = axis.barh(labels, [ratio[1] for ratio in ratios], xerr=spread, color=colours)
        axis.bar_label(drawn, fmt=" {:.2f}")
        axis.margins(x=0.15)  # room for the labels
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=measure, xlabel="time of the peer / time of eqx_vit", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    figure.savefig(path, dpi=120)
