"""The arguments of `benchmark`."""

from argparse import ArgumentParser
from pathlib import Path

from mlm_dist.arguments import OneLineParser, named_path
from mlm_dist.exit_codes import command_of

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
        "--to_loss",
        type=float,
        metavar="L",
        help="instead, train --configs, and transformers if --against names it, until their validation loss is at most "
        "L: steps, tokens, time and peak memory to it, with one-sided p-values. The same command continues",
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        metavar="CONFIG",
        help="for --to_loss: configs to train. Flags apply to all of them, and the first is the one to compare with",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="for --to_loss: runs of each config (default: %(default)s)"
    )
    parser.add_argument(
        "--at_a_time",
        type=int,
        default=1,
        metavar="N",
        help="for --to_loss: runs that share the machine; their times then say little (default: %(default)s)",
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
        help="folder for the results, and the runs of --to_loss (default: %(default)s)",
    )
    return parser
