"""Plot runs and write a report: `python -m mlm_dist.plot --run RUN_DIR`."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from mlm_dist.arguments import OneLineParser, add_device, add_step, named_path
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import command_of, run_verb
from mlm_dist.output import print_result

if TYPE_CHECKING:
    from mlm_dist.plots.model_outputs import ModelOutputs


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = OneLineParser(
        prog=command_of("plot"),
        description="Plot the curves of one or several runs, as PNG and SVG. For a single run, also write a "
        "self-contained report.html, and plot attention maps and nearest-neighbour tokens.",
        epilog=f'Example: {command_of("plot")} --run runs/novels --attention "Call me [MASK]." --neighbours sea ship',
    )
    parser.add_argument(
        "--run",
        "--run_dir",
        nargs="+",
        action="extend",
        type=named_path,
        required=True,
        metavar="RUN_DIR",
        help="one or several run directories of `train`",
    )
    parser.add_argument(
        "--out", type=named_path, metavar="DIR", help="folder for the files (default for a single run: RUN_DIR/plots)"
    )
    parser.add_argument("--attention", metavar="TEXT", help="plot the attention of each head for a text")
    parser.add_argument(
        "--neighbours", nargs="+", default=[], metavar="WORD", help="plot the tokens with the nearest embeddings"
    )
    parser.add_argument(
        "--fill",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts with [MASK] for the report (default: three sentences)",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        action="extend",
        type=named_path,
        default=[],
        metavar="PATH",
        help="results to show in the report: folders written by `finetune`, and files with the output of `probe "
        "--json` (RUN_DIR/plots/probe.json and probe_within_word.json are always shown)",
    )
    add_step(parser)
    add_device(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Write the requested plots and print their paths."""
    given = build_parser().parse_args(arguments)
    if len(given.run) > 1:
        for flag in ("attention", "neighbours", "fill", "results", "step"):
            if getattr(given, flag) not in (None, []):
                raise UserError(f"--{flag} works for a single run, but {len(given.run)} are given")
        if not given.out:
            raise UserError(f"{len(given.run)} runs are given: set --out to a folder for their plot")
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.plots.attention import lay_out_attention, size_of_attention  # noqa: PLC0415
    from mlm_dist.plots.curves import SIZE, lay_out_curves  # noqa: PLC0415
    from mlm_dist.plots.neighbours import lay_out_neighbours, size_of_neighbours  # noqa: PLC0415
    from mlm_dist.plots.report import write_report  # noqa: PLC0415
    from mlm_dist.plots.results import describe_results, read_results  # noqa: PLC0415
    from mlm_dist.plots.writing import output_folder, save_plot  # noqa: PLC0415
    from mlm_dist.run.history import read_histories  # noqa: PLC0415

    histories = read_histories(given.run)
    # Before anything is written, because they may raise a UserError.
    found = read_results(given.run[0], given.results) if len(histories) == 1 else {}
    outputs = outputs_of_run(given) if len(histories) == 1 else None
    out = given.out or given.run[0] / "plots"
    with output_folder(out):
        paths = save_plot(out / "curves", SIZE, lay_out_curves, histories)
        if outputs and (attention := outputs.attention):
            paths += save_plot(out / "attention", size_of_attention(attention), lay_out_attention, attention)
        if outputs and (words := outputs.neighbourhoods):
            paths += save_plot(out / "neighbours", size_of_neighbours(words), lay_out_neighbours, words)
        if outputs:
            results, page = describe_results(found, outputs.digest, outputs.step), out / "report.html"
            paths += write_report(given.run[0], histories[0], outputs.sentences, outputs.note, page, results)
    print_result(*map(str, paths))


def outputs_of_run(given: Namespace) -> "ModelOutputs":
    """Load the model of the run and compute its outputs for the plots and the report.

    If it cannot be loaded and no flag requires it, the outputs are empty, with the reason as their note.

    Raises:
        UserError: the model cannot be loaded although a flag requires it, or it cannot process the texts or words.
    """
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.plots.model_outputs import ModelOutputs, compute_outputs  # noqa: PLC0415

    try:
        model = load(given.run[0], given.device, given.step)
    except UserError as error:
        if given.attention is not None or given.neighbours or given.fill or given.step or given.device != "auto":
            raise
        return ModelOutputs(None, [], [], str(error))
    return compute_outputs(model, given.attention, given.neighbours, given.fill)


if __name__ == "__main__":
    run_verb(main)
