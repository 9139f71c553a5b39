"""Predict masked tokens with a trained model: `python -m mlm_dist.fill --run RUN_DIR "Call me [MASK]."`."""

import json
import sys

from mlm_dist.arguments import add_device, read_lines, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result


def main(arguments: list[str]) -> None:
    """Print the most likely tokens for each mask, and the text with all masks filled."""
    parser = run_parser(
        "fill",
        "Predict masked tokens: print candidates for each mask while the others stay masked, and, for a text with "
        "several masks, the text with all of them filled, the most confident prediction first. [MASK] is one token, "
        "[MASK*3] a word or phrase of three. A text may be longer than the context window: each mask is predicted from "
        "a window around it.",
        '--run runs/novels "Call me [MASK]. Some [MASK] ago"',
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="candidates for each mask (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="text with masks (default: the lines of standard input)"
    )
    add_device(parser)
    given = parser.parse_args(arguments)
    if given.top < 1:
        raise UserError(f"--top is {given.top}: it must be at least 1")
    if not given.texts and sys.stdin.isatty():
        raise UserError('give a text such as "Call me [MASK]." or pipe lines to standard input')
    texts = given.texts or read_lines("-")
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.inference.filling import Filling  # noqa: PLC0415

    def describe(text: str, filling: Filling) -> str:
        if given.json:
            masks = [[candidate._asdict() for candidate in mask] for mask in filling.masks]
            answer = {"text": text, "filled": filling.text, "probability": filling.probability, "masks": masks}
            return json.dumps(answer, ensure_ascii=False)
        lines = [
            "    " + "  ".join(f"{candidate.text!r} {percent(candidate.probability)}" for candidate in mask)
            for mask in filling.masks
        ]
        if len(filling.masks) > 1:
            lines.append(f"    together, {percent(filling.probability)}: {filling.text}")
        return "\n".join([text, *lines])

    model = load(given.run, given.device, given.step)
    print_result(*[describe(text, model.fill(text, given.top)) for text in texts])


def percent(probability: float) -> str:
    """A probability in percent, with two significant digits below 1 %."""
    return f"{probability:.0%}" if probability >= 0.01 else f"{100 * probability:.2g}%"


if __name__ == "__main__":
    run_verb(main)
