"""The results as a table on the screen and as a bar chart."""

from pathlib import Path
from typing import Any

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
