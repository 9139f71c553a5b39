"""Plan a run before it starts: `python -m mlm_dist.plan --config FILE`."""

import json
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from mlm_dist.arguments import OneLineParser
from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.files import format_size
from mlm_dist.output import print_result, warn

if TYPE_CHECKING:
    from mlm_dist.benchmarks.forecast import Forecast

UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (0, "seconds"))


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
    return parser


def main(arguments: list[str]) -> None:
    """Print the plan."""
    given, rest = build_parser().parse_known_args(arguments)
    config = parse_config(rest, "plan")
    if given.processes < 1:
        raise UserError(f"--processes is {given.processes}: it must be at least 1")
    config.check_world_size(given.processes)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.benchmarks.forecast import forecast, with_vocabulary  # noqa: PLC0415

    result = forecast(with_vocabulary(config), given.processes, warn)
    print_result(json.dumps(result._asdict()) if given.json else describe(result, config))


def describe(result: "Forecast", config: Config) -> str:
    """The plan, one line for each quantity."""
    train = config.train
    fits = f"up to {result.most_rows:,} rows at a time fit into {format_size(result.memory)}"
    if result.fitting_micro_batch_size:
        fits += f": set train.micro_batch_size {result.fitting_micro_batch_size}, with which the time is measured"
    per_evaluation = f", {in_words(result.evaluation)} per evaluation" if train.eval_interval else ""
    rows = [
        ("parameters", f"{result.parameters:,}"),
        ("peak memory", f"{format_size(result.peak_memory)} per process, with {result.rows_at_a_time} rows at a time"),
        ("", fits),
        ("disk", f"{format_size(result.disk)} for {result.checkpoints} checkpoints and the final parameters"),
        ("tokens", f"{result.tokens:,} in {train.max_iters:,} steps of {train.batch_size} x {config.model.block_size}"),
        ("epochs", f"{result.epochs:.2f} of {result.rows_per_epoch:,} rows"),
        ("time", f"{in_words(result.total)}: {in_words(result.step)} per step{per_evaluation}"),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def in_words(seconds: float) -> str:
    """A duration in the largest unit of which there are at least two."""
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size)
    return f"{seconds / (size or 1):.3g} {unit}"


if __name__ == "__main__":
    run_verb(main)
