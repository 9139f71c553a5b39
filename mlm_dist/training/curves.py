"""Pictures of a run's metrics."""

from pathlib import Path

from mlm_dist.training.metrics import Event, read_events

# Okabe and Ito's palette, told apart by colour-blind eyes.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw losses, learning rate and throughput against the step into a PNG.

    Args:
        metrics: a metrics.jsonl.
        picture: the file to write; its folder is made.
    """
    # Imported here: drawing comes last in a run, and the import takes as long as a good part of its start.
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    events = read_events(metrics)
    training = [event for event in events if "loss" in event]
    evaluations = [event for event in events if "val_loss" in event]
    figure, (losses, rates, speeds) = pyplot.subplots(
        3, 1, figsize=(8, 9), sharex=True, height_ratios=[3, 1, 1], layout="constrained"
    )
    losses.plot(*columns(training, "loss"), color=BLUE, alpha=0.6, linewidth=1, label="training")
    losses.plot(
        *columns(evaluations, "val_loss"), color=ORANGE, linewidth=2, marker="o", markersize=4, label="held out"
    )
    losses.set(ylabel="loss (nats per masked token)", title=metrics.parent.name)
    losses.legend(frameon=False)
    rates.plot(*columns(training, "lr"), color=GREEN)
    rates.set(ylabel="learning rate")
    speeds.plot(*columns(training, "tokens_per_second"), color=BLUE, linewidth=1)
    speeds.set(ylabel="tokens/s", xlabel="step")
    speeds.set_ylim(bottom=0)
    for axes in (losses, rates, speeds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def columns(events: list[Event], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key."""
    return [event["step"] for event in events], [event[key] for event in events]
