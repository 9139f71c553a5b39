"""Compare runs that adapt a model with runs from scratch: `python docs/adaptation.py FOLDER PICTURE`.

FOLDER has the runs scratch-1, adapted-1, replay-1, scratch-2 and so on, of docs/adaptation.md. The table is printed.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mlm_dist.output import print_result
from mlm_dist.plots.style import BLUE, GREEN, VERMILLION, new_figure, render
from mlm_dist.run.metrics import Event, read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (9.0, 3.6)  # inches
Numbers = npt.NDArray[np.float64]
COLORS = {"scratch": VERMILLION, "adapted": BLUE, "replay": GREEN}


class Losses(NamedTuple):
    """The losses of the runs of a kind.

    Attributes:
        steps: (N,) of the evaluations.
        new: (runs, N) on the new text.
        old: (runs, N) on the text of the source; NaN where it was not evaluated.
    """

    steps: list[int]
    new: Numbers
    old: Numbers


def read_losses(folder: Path, kind: str, new: str, old: str) -> Losses:
    """Read the evaluations of the runs of a kind, on the corpora with the names `new` and `old`."""
    runs = [
        {event["step"]: event for event in read_events(run / "metrics.jsonl") if "val_loss" in event}
        for run in sorted(folder.glob(f"{kind}-*"))
    ]
    steps = sorted(set.intersection(*map(set, runs)))
    return Losses(
        steps,
        np.array([[loss_on(run[step], new, run[step]["val_loss"]) for step in steps] for run in runs]),
        np.array([[loss_on(run[step], old, np.nan) for step in steps] for run in runs]),
    )


def loss_on(event: Event, corpus: str, default: float) -> float:
    """The loss of an evaluation on the corpus of this name; `default` if it is not among several."""
    found = [value for key, value in event.items() if key.startswith("val_loss/") and Path(key).name == corpus]
    return float(found[0] if found else default)


def draw(axes: "Axes", steps: list[int], losses: Numbers, kind: str) -> None:
    """Plot the mean over the seeds, and their range as a band."""
    axes.plot(steps, losses.mean(0), color=COLORS[kind], label=kind)
    axes.fill_between(steps, losses.min(0), losses.max(0), color=COLORS[kind], alpha=0.25, linewidth=0)


def main() -> None:
    """Print the table and write the picture."""
    folder, picture = map(Path, sys.argv[1:])
    print_result("| | step | loss on the new text | loss on the old text | forgotten |", "|---|---|---|---|---|")
    with new_figure(*SIZE) as figure:
        new, old = figure.subplots(1, 2)
        for kind in COLORS:
            losses = read_losses(folder, kind, "dickens", "base")
            draw(new, losses.steps, losses.new, kind)
            if kind != "scratch":
                draw(old, losses.steps, losses.old, kind)
            for index in (0, len(losses.steps) - 1):
                old_loss, forgotten = losses.old[:, index], losses.old[:, index] - losses.old[:, 0]
                cells = (losses.new[:, index], old_loss, forgotten)
                print_result(f"| {kind} | {losses.steps[index]} | {' | '.join(map(in_words, cells))} |")
        for axes, title in ((new, "new text"), (old, "text of the source")):
            axes.set(xlabel="step", ylabel="validation loss (nats per token)", title=title)
            axes.grid()
            axes.legend()
        picture.write_bytes(render(figure, "png"))


def in_words(values: Numbers) -> str:
    """The mean over the seeds and, in parentheses, each of them."""
    if np.isnan(values).any():
        return "-"
    return f"{values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
