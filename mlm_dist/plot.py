"""Pictures and a page about runs: `python -m mlm_dist.plot --run RUN_DIR`."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from mlm_dist.command_line import OneLineParser, add_device, named_path, run_verb
from mlm_dist.errors import UserError
from mlm_dist.output import print_result

if TYPE_CHECKING:
    from mlm_dist.plots.answers import Answers


def build_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = OneLineParser(
        prog="python -m mlm_dist.plot",
        description="Draw the curves of a run, or of several laid over each other, as PNG and SVG. Of one run also "
        "write report.html, a page that needs no other file, and draw what its model looks at and takes for alike.",
        epilog='Example: python -m mlm_dist.plot --run runs/novels --attention "Call me [MASK]." --neighbours sea ship',
    )
    parser.add_argument(
        "--run",
        "--run_dir",
        nargs="+",
        action="extend",
        type=named_path,
        required=True,
        metavar="RUN_DIR",
        help="folders of training runs",
    )
    parser.add_argument(
        "--out", type=named_path, metavar="DIR", help="folder for the files (default, of one run: RUN_DIR/plots)"
    )
    parser.add_argument("--attention", metavar="TEXT", help="draw how much each head looks at which token of a text")
    parser.add_argument(
        "--neighbours", nargs="+", default=[], metavar="WORD", help="draw the tokens whose embeddings are nearest"
    )
    parser.add_argument(
        "--fill", nargs="+", default=[], metavar="TEXT", help="texts with [MASK] for the page (default: three of ours)"
    )
    add_device(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Draw what was asked for, and print the paths."""
    given = build_parser().parse_args(arguments)
    if len(given.run) > 1:
        for flag in ("attention", "neighbours", "fill"):
            if getattr(given, flag) not in (None, []):
                raise UserError(f"--{flag} is for one run, and {len(given.run)} are given")
        if not given.out:
            raise UserError(f"{len(given.run)} runs are given: say with --out where to put their picture")
    # Only now, so that --help and mistakes are answered without waiting for torch.
    from mlm_dist.plots.attention import lay_out_attention, size_of_attention  # noqa: PLC0415
    from mlm_dist.plots.curves import SIZE, lay_out_curves  # noqa: PLC0415
    from mlm_dist.plots.neighbours import lay_out_neighbours, size_of_neighbours  # noqa: PLC0415
    from mlm_dist.plots.report import write_report  # noqa: PLC0415
    from mlm_dist.plots.writing import draw, writing_into  # noqa: PLC0415
    from mlm_dist.run.history import read_histories  # noqa: PLC0415

    histories = read_histories(given.run)
    answers = ask(given) if len(histories) == 1 else None  # before anything is written: it may have been asked wrongly
    out = given.out or given.run[0] / "plots"
    with writing_into(out):
        paths = draw(out / "curves", SIZE, lay_out_curves, histories)
        if answers and (attention := answers.attention):
            paths += draw(out / "attention", size_of_attention(attention), lay_out_attention, attention)
        if answers and (words := answers.neighbourhoods):
            paths += draw(out / "neighbours", size_of_neighbours(words), lay_out_neighbours, words)
        if answers:
            paths += write_report(given.run[0], histories[0], answers.sentences, answers.note, out / "report.html")
    print_result(*map(str, paths))


def ask(given: Namespace) -> "Answers":
    """Ask the run's model for what is to be drawn. The curves and the page do without it, if there is none yet."""
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.plots.answers import Answers, answer  # noqa: PLC0415

    try:
        model = load(given.run[0], given.device)
    except UserError as error:
        if given.attention is not None or given.neighbours or given.fill or given.device != "auto":
            raise
        return Answers(None, [], [], str(error))
    return answer(model, given.attention, given.neighbours, given.fill)


if __name__ == "__main__":
    run_verb(main)
