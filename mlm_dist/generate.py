"""Generate text with a trained model: `python -m mlm_dist.generate --run RUN_DIR "It was [GAP:20] and then."`."""

import contextlib
import json
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator

from mlm_dist.arguments import add_device, run_parser
from mlm_dist.exit_codes import run_verb
from mlm_dist.inference.request import Request
from mlm_dist.output import print_result

SEPARATOR = "---"


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = run_parser(
        "generate",
        "Generate text: from nothing, after a prompt, or in the gaps of a text. [GAP:20] is a gap of 20 tokens. At "
        "first all of them are masked, and each forward pass generates some. The given text is fixed, except that a "
        f"space before a gap belongs to the gap. A line {SEPARATOR} separates samples.",
        '--run runs/novels_diffusion "It was [GAP:20] and then he [GAP:10]."',
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="prompt, or text with gaps")
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens after a text without gaps (default: the size of the context window)",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts to generate (default: %(default)s)")
    parser.add_argument(
        "--order",
        choices=["random", "confidence"],
        default="random",
        help="random: sample positions and tokens from the model's distribution; confidence: sample a token for "
        "every masked position and keep the most likely ones (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="forward passes per context window (default: one per token)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides the logits; 0: always the most likely token (default: %(default)s)",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of tokens with this total probability (default: %(default)s)",
    )
    parser.add_argument(
        "--remask",
        type=float,
        default=0.0,
        metavar="F",
        help="fraction of the generated tokens that each pass masks again (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: %(default)s)"
    )
    add_device(parser)
    parser.add_argument("--watch", action="store_true", help="on a terminal, show the text as it is generated")
    parser.add_argument("--json", action="store_true", help="print one JSON object per sample")
    return parser


def main(arguments: list[str]) -> None:
    """Print generated text."""
    given = vars(build_parser().parse_args(arguments))
    run, device, step, watched, as_json = (given.pop(name) for name in ("run", "device", "step", "watch", "json"))
    Request(**given)  # checks the values before torch is imported
    from mlm_dist import load  # noqa: PLC0415

    model = load(run, device, step)
    with screen() if watched and sys.stdout.isatty() else contextlib.nullcontext() as watch:
        generations = model.generate(**given, watch=watch)
    if as_json:
        print_result(*[json.dumps(generation._asdict(), ensure_ascii=False) for generation in generations])
    else:
        print_result(*[generation.text for generation in generations], sep=f"\n{SEPARATOR}\n")


@contextlib.contextmanager
def screen() -> Iterator[Callable[[str], None]]:
    """Show a changing text on the terminal, and clear it at the end. If it is too tall, only its end is shown."""
    from rich.console import Console  # noqa: PLC0415 (`rich` is slow to import)
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    interrupts: list[int] = []
    # Ctrl-C takes effect at the end of a frame, because an incomplete frame could not be cleared.
    before = signal.signal(signal.SIGINT, lambda signum, _: interrupts.append(signum))
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def show(text: str) -> None:
                printable = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
                lines = Text(printable).wrap(console, console.width)
                room = max(1, console.height - 1)  # the last line is for the cursor
                live.update(Text("\n").join(lines[-room:]), refresh=True)
                if interrupts:
                    raise KeyboardInterrupt

            yield show
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    run_verb(main)
