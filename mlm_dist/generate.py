"""Text written by a trained model: `python -m mlm_dist.generate --run RUN_DIR "It was [GAP:20] and then."`."""

import contextlib
import json
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator

from mlm_dist.command_line import add_device, run_parser, run_verb
from mlm_dist.inference.request import Request
from mlm_dist.output import print_result

SEPARATOR = "---"


def describe_arguments() -> ArgumentParser:
    """Describe the command line."""
    parser = run_parser(
        "generate",
        "Write text with a trained model: from nothing, after a prompt, or in the gaps of a text, [GAP:20] standing "
        "for 20 tokens to be written. All of them are hidden at first, and each forward pass writes some. What is "
        "given stays as it is, but for a space before what is written, which is a part of that. Between samples a line "
        f"{SEPARATOR} is printed.",
        '--run runs/novels_diffusion "It was [GAP:20] and then he [GAP:10]."',
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="prompt, or text with gaps")
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens after a text without gaps (default: as many as the model sees)"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts to write (default: %(default)s)")
    parser.add_argument(
        "--order",
        choices=["random", "confidence"],
        default="random",
        help="random: draw the places to be written, and a token for each, which follows the model's own distribution; "
        "confidence: draw a token for every hidden place and keep those that the model finds likeliest (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="forward passes for the tokens that are seen together (default: one for each token)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides logits; 0: always the likeliest token (default: %(default)s)",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw of the fewest tokens that have this probability together (default: %(default)s)",
    )
    parser.add_argument(
        "--remask",
        type=float,
        default=0.0,
        metavar="F",
        help="fraction of the written tokens that each pass hides again, to be written anew (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: %(default)s)"
    )
    add_device(parser)
    parser.add_argument("--watch", action="store_true", help="on a terminal, show the text as it is written")
    parser.add_argument("--json", action="store_true", help="print one JSON object a sample")
    return parser


def main(arguments: list[str]) -> None:
    """Print what the model writes."""
    given = vars(describe_arguments().parse_args(arguments))
    run, device, watched, as_json = (given.pop(name) for name in ("run", "device", "watch", "json"))
    Request(**given)  # so that a mistake is answered without waiting for torch
    from mlm_dist import load  # noqa: PLC0415

    model = load(run, device)
    with screen() if watched and sys.stdout.isatty() else contextlib.nullcontext() as watch:
        generations = model.generate(**given, watch=watch)
    if as_json:
        print_result(*[json.dumps(generation._asdict(), ensure_ascii=False) for generation in generations])
    else:
        print_result(*[generation.text for generation in generations], sep=f"\n{SEPARATOR}\n")


@contextlib.contextmanager
def screen() -> Iterator[Callable[[str], None]]:
    """A place on the terminal for a text that changes, which is cleared in the end. Of a tall one the end is shown."""
    from rich.console import Console  # noqa: PLC0415 (only those who watch wait for it)
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    interrupts: list[int] = []
    # Ctrl-C waits for the frame to be whole: one that is cut short could not be cleared.
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def show(text: str) -> None:
                printable = "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)
                lines = Text(printable).wrap(console, console.width)
                room = max(1, console.height - 1)  # the cursor goes below
                live.update(Text("\n").join(lines[-room:]), refresh=True)
                if interrupts:
                    raise KeyboardInterrupt

            yield show
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    run_verb(main)
