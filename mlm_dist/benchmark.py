"""Measure training steps and compare them with peers: `python -m mlm_dist.benchmark --config FILE`."""

import importlib.util
import json
import math
import signal
import tempfile
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlm_dist.benchmark_arguments import ROWS_ON_A_CPU, build_parser
from mlm_dist.config_reading import parse_config
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_log, print_result


def main(arguments: list[str]) -> None:
    """Run the benchmark, print tables, and write JSON and a plot."""
    given, rest = build_parser().parse_known_args(arguments)
    for flag in ("rows", "rounds", "seeds", "at_a_time"):
        value = getattr(given, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} is {value}: it must be at least 1")
    needed = ["transformers"] if "transformers" in given.against else []
    for module in [*needed, *(["scipy"] if given.to_loss is not None else [])]:
        if not importlib.util.find_spec(module):
            raise UserError(f"{module} is not installed: run `pip install 'mlm_dist[benchmark]'`")
    (measure if given.to_loss is None else compare_to_loss)(given, rest)


def make_folder(out: Path) -> None:
    """Create the folder for the results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error


def log(line: str) -> None:
    """Print what is being measured."""
    print_log(f"measuring: {line}")


def measure(given: Namespace, rest: list[str]) -> None:
    """Measure steps of a config and of peers."""
    if given.configs:
        raise UserError("--configs are for --to_loss: give both, or --config")
    config = parse_config(rest, "benchmark")
    make_folder(given.out)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.benchmarks.parts import is_random  # noqa: PLC0415
    from mlm_dist.benchmarks.report import markdown_tables, save_plot  # noqa: PLC0415
    from mlm_dist.benchmarks.suite import Suite, open_corpora  # noqa: PLC0415
    from mlm_dist.distributed import choose_device  # noqa: PLC0415

    on_cpu = choose_device(config.device).type == "cpu"
    rows_at_a_time = config.train.micro_batch_size or config.train.batch_size
    rows = given.rows or (min(rows_at_a_time, ROWS_ON_A_CPU) if on_cpu else rows_at_a_time)

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


def compare_to_loss(given: Namespace, rest: list[str]) -> None:
    """Train configs and peers to a validation loss."""
    if not given.configs:
        raise UserError("--to_loss trains --configs: give at least one, such as --configs novels novels_fast")
    if not 0 < given.to_loss < math.inf:
        raise UserError(f"--to_loss is {given.to_loss}: it must be above 0")
    for flag in ("--config", "--seed", "--run_dir"):
        if any(argument.partition("=")[0] == flag for argument in rest):
            raise UserError(f"{flag}: --to_loss sets it for each run; give --configs, --seeds and --out")
    configs = {Path(name).stem: parse_config(["--config", name, *rest], "benchmark") for name in given.configs}
    if len(configs) < len(given.configs):
        raise UserError("--configs: two of them have the same name")
    make_folder(given.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends the runs too, as Ctrl-C does
    from mlm_dist.benchmarks.comparison import write_comparison  # noqa: PLC0415
    from mlm_dist.benchmarks.to_loss import Contender, ToLoss, check_comparable, train_peer  # noqa: PLC0415
    from mlm_dist.data.preparation import find_or_prepare_all  # noqa: PLC0415
    from mlm_dist.run.lock import lock  # noqa: PLC0415

    contenders = [Contender(name, config) for name, config in configs.items()]
    check_comparable(contenders)
    first = contenders[0].config
    with lock(given.out / ".lock") or nullcontext():
        find_or_prepare_all(first.data, first.model.vocab_size)  # not by a run, whose peak memory would include it
        comparison, seeds = ToLoss(given.to_loss, given.out, given.at_a_time, log), range(1, given.seeds + 1)
        if "transformers" in given.against:
            contenders.append(train_peer(comparison, first))
        comparison.train_all(contenders, seeds)
    print_result(write_comparison(comparison, contenders, seeds))
    print_log(f"saved {given.out}/to_loss.json and {given.out}/to_loss.png")


if __name__ == "__main__":
    run_verb(main)
