"""Measure training steps and compare them with peers: `python -m mlm_dist.benchmark --config FILE`."""

import importlib.util
import json
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from mlm_dist.arguments import OneLineParser, named_path
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.output import print_log

ROWS_ON_A_CPU = 64


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog=command_of("benchmark"),
        description="Measure a training step of a config on this machine: throughput, parts, memory, the fraction "
        "of the machine's matrix-product throughput, scaling over processes; and the same step of peers. It takes "
        "minutes and needs an otherwise idle machine. --config FILE and a flag for each config key work as for "
        "`train`.",
        epilog=f"Example: {command_of('benchmark')} --config configs/novels.yaml --against naive transformers",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=["naive"],
        choices=["naive", "transformers"],
        metavar="PEER",
        help="peers: naive (the first version of this project: one module per head, logits at every position, masks "
        "from the global generator), transformers (BertForMaskedLM, if transformers is installed) (default: naive)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"rows per step in the comparison (default: train.micro_batch_size or train.batch_size, on a CPU at most "
        f"{ROWS_ON_A_CPU})",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="alternating runs of each candidate; medians are reported (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=named_path,
        default=Path("runs/benchmark"),
        metavar="DIR",
        help="folder for benchmark.json and benchmark.png (default: %(default)s)",
    )
    return parser


def main(arguments: list[str]) -> None:
    """Run the benchmark, print tables, and write JSON and a plot."""
    given, rest = build_parser().parse_known_args(arguments)
    config = parse_config(rest, "benchmark")
    for flag, value in (("--rows", given.rows), ("--rounds", given.rounds)):
        if value is not None and value < 1:
            raise UserError(f"{flag} is {value}: it must be at least 1")
    if "transformers" in given.against and not importlib.util.find_spec("transformers"):
        raise UserError("--against transformers: transformers is not installed: run `pip install transformers`")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {given.out}: {error.strerror}") from error
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.benchmarks.parts import is_random  # noqa: PLC0415
    from mlm_dist.benchmarks.report import markdown_tables, save_plot  # noqa: PLC0415
    from mlm_dist.benchmarks.suite import Suite, open_corpora  # noqa: PLC0415
    from mlm_dist.distributed import choose_device  # noqa: PLC0415

    on_cpu = choose_device(config.device).type == "cpu"
    rows_at_a_time = config.train.micro_batch_size or config.train.batch_size
    rows = given.rows or (min(rows_at_a_time, ROWS_ON_A_CPU) if on_cpu else rows_at_a_time)

    def log(line: str) -> None:
        print_log(f"measuring: {line}")

    def save(results: dict[str, Any]) -> None:
        (given.out / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        config, corpora = open_corpora(config, Path(folder))
        print_log(f"corpus: {'random tokens' if is_random(corpora[0]) else config.data.paths}")
        results = Suite(config, corpora, given.against, rows, given.rounds, log, save).measure()
    save_plot(results, given.out / "benchmark.png")
    print_log(
        f"\n{markdown_tables(results)}\n\nmeasured in {results['seconds']:.0f} s; "
        f"saved {given.out}/benchmark.json and {given.out}/benchmark.png"
    )


if __name__ == "__main__":
    run_verb(main)
