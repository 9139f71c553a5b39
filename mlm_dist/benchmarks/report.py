"""The results of a benchmark as Markdown tables and as a plot."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.benchmarks.suite import Results
from mlm_dist.files import replacing
from mlm_dist.plots.style import BLUE, GREEN, GREY, SKY, VERMILLION, new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_COLORS = {"input": GREY, "forward": BLUE, "backward": VERMILLION, "optimizer": GREEN, "all-reduce": SKY}


def markdown_tables(results: Results) -> str:
    """All results as Markdown tables."""
    machine, step = results["machine"], results["step"]
    parts = [part for part in step["parts"] if part != "all-reduce"]
    total = sum(step["parts"][part] for part in parts)
    checkpoint, encoding = step["checkpoint"], results["encoding"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['precision']}, torch {machine['torch']}, Python "
        f"{machine['python']}, {machine['date']}",
        "",
        *header("one step", f"{step['rows']} rows, one process"),
        row("time", median_and_range(step)),
        row("speed", f"{step['tokens_per_second']:,.0f} tokens/s"),
        row("peak memory", f"{step['peak_memory'] / 1e9:.2f} GB"),
        row("FLOPs by formula", f"{step['flops'] / 1e9:,.0f} GFLOP"),
        row("matrix ceiling, measured", f"{results['ceiling_flops'] / 1e9:,.0f} GFLOP/s"),
        row("fraction of the ceiling", f"{step['share_of_ceiling']:.0%}"),
        *(row(part, time_and_fraction(step["parts"][part], total)) for part in parts),
        row("input path alone", f"{step['input_tokens_per_second'] / 1e6:.1f} M tokens/s"),
        row("checkpoint: training is blocked for", milliseconds(checkpoint["wait"])),
        row("checkpoint: the next step is slower by", milliseconds(checkpoint["slower"])),
        "",
        *header("candidate", "rows", "time", "tokens/s", "mlm_dist speed-up", "peak memory", "mlm_dist memory"),
    ]
    for peer in results["peers"]:
        line = row(
            peer["name"],
            str(peer["rows"]),
            median_and_range(peer),
            f"{peer['tokens_per_second']:,.0f}",
            f"{peer['speed_up']:.2f} x",
            f"{peer['peak_memory'] / 1e9:.2f} GB",
            f"{peer['memory_ratio']:.2f} x",
        )
        lines.append(line)
    if "scaling" in results:
        lines += ["", *header("processes", "time", "speed-up", "efficiency", "all-reduce alone")]
    for world in results.get("scaling", []):
        line = row(
            str(world["processes"]),
            median_and_range(world),
            f"{world['speed_up']:.2f} x",
            f"{world['efficiency']:.0%}",
            milliseconds(world["all_reduce"]),
        )
        lines.append(line)
    lines += [
        "",
        *header("encoding", "MB/s"),
        row("prepare", f"{encoding['prepare'] / 1e6:.1f}"),
        row("tiktoken on one core", f"{encoding['tiktoken'] / 1e6:.1f}"),
        row("ratio", f"{encoding['prepare'] / encoding['tiktoken']:.2f} x"),
    ]
    return "\n".join(lines)


def header(*titles: str) -> list[str]:
    """The header lines of a table."""
    return [row(*titles), "|".join(["", *["---"] * len(titles), ""])]


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, with about three significant digits."""
    value = seconds * 1e3
    return f"{value:.0f} ms" if abs(value) >= 100 else f"{value:.1f} ms" if abs(value) >= 10 else f"{value:.2f} ms"


def median_and_range(measured: Results) -> str:
    """The median of several times, and their range."""
    median, fastest, slowest = (milliseconds(measured[key]) for key in ("seconds", "fastest", "slowest"))
    return f"{median} ({fastest} to {slowest})"


def time_and_fraction(seconds: float, total: float) -> str:
    """The time of a part, and its fraction of the total."""
    return f"{milliseconds(seconds)}, {seconds / total:.0%}"


def save_plot(results: Results, file: Path) -> None:
    """Plot the results as a PNG. Its folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_figure(9, 8) as figure, replacing(file) as content:
        lay_out(figure, results)
        content.write(render(figure, "png"))


def lay_out(figure: "Figure", results: Results) -> None:
    """Plot the parts of a step's time, the speed and memory of the peers, and the speed-up with more processes."""
    machine, step, peers, scaling = (results.get(key, []) for key in ("machine", "step", "peers", "scaling"))
    heights = [1.2, len(peers), len(peers), max(1, len(scaling))]
    parts, speeds, memory, worlds = figure.subplots(4, 1, height_ratios=heights)
    figure.suptitle(f"{machine['device']}, {machine['precision']}, torch {machine['torch']}, {machine['date']}")
    left = 0.0
    for part, seconds in step["parts"].items():
        if seconds:
            parts.barh(0, seconds * 1e3, left=left, color=PART_COLORS[part], label=part)
            left += seconds * 1e3
    parts.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    parts.set(yticks=[], xlabel=f"ms for a step of {step['rows']} rows on one process")
    names = [peer["name"] for peer in peers]
    labels = [f"{peer['tokens_per_second']:,.0f}" for peer in peers]
    bars(speeds, names, [peer["tokens_per_second"] for peer in peers], labels)
    speeds.set(xlabel=f"tokens/s, {peers[0]['rows']} rows per step")
    gigabytes = [peer["peak_memory"] / 1e9 for peer in peers]
    bars(memory, names, gigabytes, [f"{value:.2f}" for value in gigabytes])
    memory.set(xlabel="peak memory, GB")
    if scaling:
        speed_ups = [world["speed_up"] for world in scaling]
        sizes = [str(world["processes"]) for world in scaling]
        bars(worlds, sizes, speed_ups, [f"{speed_up:.2f} x" for speed_up in speed_ups])
        worlds.set(ylabel="processes", xlabel="speed-up over one process, same global batch")
    else:
        worlds.set_axis_off()


def bars(axes: "Axes", names: list[str], values: Iterable[float], labels: list[str]) -> None:
    """Plot labelled horizontal bars, the first one on top and in colour."""
    plotted = axes.barh(names, list(values), color=[BLUE] + [GREY] * (len(names) - 1))
    axes.bar_label(plotted, labels, padding=4)
    axes.margins(x=0.15)
    axes.invert_yaxis()
