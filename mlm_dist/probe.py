"""Probe a trained model with minimal pairs: `python -m mlm_dist.probe --run RUN_DIR --pairs PATH...`."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.arguments import ALL_STEPS, add_device, named_path, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result, warn

if TYPE_CHECKING:
    from mlm_dist.distributed import Processes
    from mlm_dist.inference.probing import Probe
    from mlm_dist.texts.minimal_pairs import MinimalPair


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = run_parser(
        "probe",
        "Compute how often a trained model finds the acceptable sentence of a minimal pair more likely, by its "
        "pseudo-log-likelihood (each token is masked in turn): by file, by phenomenon and on all pairs, with 95% "
        "intervals. Under torchrun, the processes share the work.",
        "--run runs/novels --pairs blimp/",
        has_all_steps=True,
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        action="extend",
        type=named_path,
        required=True,
        metavar="PATH",
        help="JSON Lines with a pair in each record, texts with a pair in two lines, and folders of them",
    )
    parser.add_argument(
        "--good_key",
        default="sentence_good",
        metavar="FIELD",
        help="field of a record that is its acceptable sentence (default: %(default)s)",
    )
    parser.add_argument(
        "--bad_key",
        default="sentence_bad",
        metavar="FIELD",
        help="field of a record that is its other sentence (default: %(default)s)",
    )
    parser.add_argument(
        "--phenomenon_key",
        metavar="FIELD",
        help="field of a record that names its phenomenon (default: linguistics_term if there is one, otherwise the "
        "name of the file)",
    )
    parser.add_argument("--good_line", choices=["first", "second"], help="which line of a pair in a text is acceptable")
    parser.add_argument(
        "--within_word",
        action="store_true",
        help="with each token, also mask the tokens that follow in the same word",
    )
    parser.add_argument(
        "--out",
        type=named_path,
        metavar="DIR",
        help="with --step all: folder for the learning curves, as JSON, PNG and SVG (default: RUN_DIR/plots)",
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one object per checkpoint")
    return parser


def main(arguments: list[str]) -> None:
    """Print accuracies; with `--step all`, also write the learning curves."""
    given = build_parser().parse_args(arguments)
    is_curve, folder = given.step == ALL_STEPS, given.out or given.run / "plots"
    if given.out is not None and not is_curve:
        raise UserError("--out needs --step all")
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.distributed import Processes  # noqa: PLC0415
    from mlm_dist.inference.probe_report import group_to_text, to_json, to_text  # noqa: PLC0415
    from mlm_dist.plots.probes import save_probes  # noqa: PLC0415
    from mlm_dist.plots.writing import output_folder  # noqa: PLC0415
    from mlm_dist.texts.minimal_pairs import PairFormat, read_pairs  # noqa: PLC0415

    processes = Processes(given.device)
    with processes.report_missing_ranks("run the command again"):
        pair_format = PairFormat(given.good_key, given.bad_key, given.phenomenon_key, given.good_line)
        pairs = processes.on_rank_zero(lambda: read_pairs(given.pairs, pair_format))
        probes: list[Probe] = []
        paths: list[Path] = []
        if is_curve:
            with processes.raise_on_all_ranks(), output_folder(folder):
                pass  # rather than find out after hours that it cannot be written
        for probe, block_size in probe_steps(given, pairs, processes):
            probes.append(probe)
            if processes.is_rank_zero:
                table = f"step {probe.step}  {group_to_text(probe.overall)}" if is_curve else to_text(probe, block_size)
                print_result(json.dumps(to_json(probe)) if given.json else table)
            if is_curve:  # after each step, so that no result is lost if a later one fails
                paths = processes.on_rank_zero(lambda: save_probes(folder, probes))
    if not probes:
        raise UserError(f"{given.run}: none of its checkpoints can be loaded")
    if processes.is_rank_zero and paths and not given.json:
        print_result(*map(str, paths))
    processes.close()


def probe_steps(
    given: Namespace, pairs: "Sequence[MinimalPair]", processes: "Processes"
) -> "Iterator[tuple[Probe, int]]":
    """The results and the block size of the model of each step. Of all steps, those that cannot be loaded are left out.

    Raises:
        UserError: the model cannot be loaded, or none of those of all steps.
    """
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415
    from mlm_dist.inference.probing import compare, score_pairs  # noqa: PLC0415
    from mlm_dist.inference.scoring import score_on_all_ranks  # noqa: PLC0415
    from mlm_dist.run.parameters import steps_at_hand  # noqa: PLC0415
    from mlm_dist.run.run_dir import RunDir  # noqa: PLC0415

    is_curve = given.step == ALL_STEPS
    steps = processes.on_rank_zero(lambda: steps_at_hand(RunDir(given.run))) if is_curve else [given.step]
    for step in steps:
        try:
            with processes.raise_on_all_ranks():
                model = TrainedModel(given.run, processes.device, step)
        except UserError as error:
            if len(steps) == 1:
                raise
            warn(f"step {step} is left out: {error}")
            continue
        score = partial(score_pairs, partial(model.score, within_word=given.within_word))
        block_size = model.config.model.block_size
        scores = score_on_all_ranks(score, pairs, processes)
        yield compare(model.step, block_size, given.within_word, pairs, scores), block_size


if __name__ == "__main__":
    run_verb(main)
