"""Plan a run before it starts: `python -m mlm_dist.plan --config FILE`."""

import json
import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.arguments import OneLineParser
from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.files import format_size
from mlm_dist.output import duration_in_words, print_result, warn
from mlm_dist.phases import has_smaller_batches

if TYPE_CHECKING:
    from mlm_dist.benchmarks.forecast import Forecast
    from mlm_dist.data.corpus import Corpus


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog=command_of("plan"),
        description="Say what a run will take, before it writes anything: memory, disk, epochs, and time on this "
        "machine, measured with a few of its steps in about a minute. --config FILE and a flag for each config key "
        "work as for `train`. Texts at data.path are prepared in the cache, as `train` prepares them.",
        epilog=f"Example: {command_of('plan')} --config configs/novels.yaml --train.batch_size 512",
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes of the run on this machine (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--sweep",
        type=sweep_range,
        metavar="KEY=LOW..HIGH",
        help="instead, train short runs at rates from LOW to HIGH, for KEY optim.lr or optim.muon_lr, and suggest one: "
        "--sweep optim.lr=1e-4..1e-2",
    )
    parser.add_argument("--out", type=picture, metavar="FILE", help="for --sweep: plot the losses (.png or .svg)")
    return parser


def sweep_range(text: str) -> tuple[str, float, float]:
    """Parse `--sweep`: the key, the lowest rate and the highest."""
    found = re.fullmatch(r"(optim\.(?:muon_)?lr)=([^=]+)\.\.([^=]+)", text)
    try:
        key, low, high = found[1], float(found[2]), float(found[3])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"'{text}' is not a range such as optim.lr=1e-4..1e-2") from error
    if not 0 < low < high < math.inf:
        raise ArgumentTypeError(f"'{text}': the rates must be above 0, the lower one first")
    return key, low, high


def picture(text: str) -> Path:
    """Parse `--out`."""
    if Path(text).suffix not in (".png", ".svg"):
        raise ArgumentTypeError(f"'{text}' must end in .png or .svg")
    return Path(text)


def main(arguments: list[str]) -> None:
    """Print the plan."""
    given, rest = build_parser().parse_known_args(arguments)
    config = parse_config(rest, "plan")
    if given.processes < 1:
        raise UserError(f"--processes is {given.processes}: it must be at least 1")
    check_sweep(given, config)
    config.check_world_size(given.processes)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.benchmarks.forecast import forecast, open_corpora  # noqa: PLC0415

    config, corpora = open_corpora(config)
    if given.sweep:
        sweep(config, corpora, given)
    else:
        result = forecast(config, given.processes, warn)
        print_result(json.dumps(result._asdict()) if given.json else describe(result, config))


def check_sweep(given: Namespace, config: Config) -> None:
    """Raise `UserError` if flags do not fit together, before a sweep takes minutes."""
    if not given.sweep:
        if given.out:
            raise UserError("--out is the plot of --sweep: give both")
        return
    if given.processes > 1:
        raise UserError("--sweep trains in one process: give no --processes")
    if config.init_from:
        raise UserError("--sweep trains from random parameters: leave out init_from, or compare short runs of `train`")
    if given.sweep[0] == "optim.muon_lr" and config.optim.name == "adamw":
        raise UserError(f"--sweep optim.muon_lr: optim.name is {config.optim.name}, which has no such rate")
    if given.out and not given.out.parent.is_dir():
        raise UserError(f"--out {given.out}: there is no folder {given.out.parent}")


def sweep(config: Config, corpora: "list[Corpus]", given: Namespace) -> None:
    """Train at several rates, print their losses, and plot them."""
    from mlm_dist.benchmarks.sweep import best_of, short_config, spaced_rates, train_at_rates  # noqa: PLC0415
    from mlm_dist.plots.rates import save_rates  # noqa: PLC0415

    key, low, high = given.sweep
    config = short_config(config)
    trials = train_at_rates(config, corpora, key, spaced_rates(low, high), lambda trial: warn(f"measuring: {trial}"))
    best = best_of(trials)
    if given.out:
        save_rates(given.out, [trial.rate for trial in trials], [trial.val_loss for trial in trials], key, best.rate)
    rows = [f"{trial.rate:<12.3g}{trial.val_loss:.4f}{'  lowest' if trial == best else ''}" for trial in trials]
    if given.json:
        losses = {trial.rate: trial.val_loss if math.isfinite(trial.val_loss) else None for trial in trials}
        print_result(json.dumps({"key": key, "best": best.rate, "val_losses": losses}))
    else:
        title = f"{key:<12}validation loss after {config.train.max_iters} steps"
        print_result(title, *rows, f"--{key} {best.rate:.3g}")


def describe(result: "Forecast", config: Config) -> str:
    """The plan, one line for each quantity."""
    train = config.train
    shape = f"{train.batch_size} x {config.model.block_size}{', fewer rows at first' * has_smaller_batches(config)}"
    fits = f"up to {result.most_rows:,} rows at a time fit into {format_size(result.memory)}"
    if result.fitting_micro_batch_size:
        fits += f": set train.micro_batch_size {result.fitting_micro_batch_size}, with which the time is measured"
    stored = f"{result.checkpoints} checkpoints" + f", {result.milestones} milestones" * bool(result.milestones)
    per_evaluation = f", {duration_in_words(result.evaluation)} per evaluation" if train.eval_interval else ""
    rows = [
        ("parameters", f"{result.parameters:,}"),
        ("peak memory", f"{format_size(result.peak_memory)} per process, with {result.rows_at_a_time} rows at a time"),
        ("", fits),
        ("disk", f"{format_size(result.disk)} for {stored} and the final parameters"),
        ("tokens", f"{result.tokens:,} in {train.max_iters:,} steps of {shape}"),
        ("epochs", f"{result.epochs:.2f} of {result.rows_per_epoch:,} rows"),
        ("time", f"{duration_in_words(result.total)}: {duration_in_words(result.step)} per step{per_evaluation}"),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


if __name__ == "__main__":
    run_verb(main)
