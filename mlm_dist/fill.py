"""Fill masks with a trained model: `python -m mlm_dist.fill --run RUN_DIR "Call me [MASK]."`."""

from pathlib import Path

from mlm_dist.command_line import OneLineParser
from mlm_dist.errors import UserError, run_verb


def main(arguments: list[str]) -> None:
    """Print the likeliest tokens for each mask."""
    parser = OneLineParser(
        prog="python -m mlm_dist.fill",
        description="Show what a trained model puts in the place of each [MASK].",
        epilog='Example: python -m mlm_dist.fill --run runs/novels "Call me [MASK]."',
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="folder of a training run")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="tokens for each mask (default: %(default)s)")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="text with one or more [MASK]")
    given = parser.parse_args(arguments)
    if given.top < 1:
        raise UserError(f"--top is {given.top}: it must be at least 1")
    # Only now, so that --help and mistakes are answered without waiting for torch.
    from mlm_dist.trained.model import TrainedModel  # noqa: PLC0415

    model = TrainedModel(given.run)
    filled = [model.fill(text, given.top) for text in given.texts]
    for text, masks in zip(given.texts, filled, strict=True):
        print(text)
        for candidates in masks:
            print("   ", "  ".join(f"{candidate.text!r} {candidate.probability:.0%}" for candidate in candidates))


if __name__ == "__main__":
    run_verb(main)
