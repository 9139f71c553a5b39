"""All commands under one name: `mlm-dist COMMAND ...`, or `python -m mlm_dist COMMAND ...`."""

import difflib
import importlib
import sys

from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result
from mlm_dist.version import __version__

COMMANDS = {
    "prepare": "encode texts into a corpus",
    "train": "train a model, or continue its run",
    "evaluate": "loss and accuracy on a text, or the likelihood of lines",
    "probe": "accuracy on minimal pairs, such as BLiMP's",
    "finetune": "accuracy on a labelled task, beside baselines",
    "fill": "predict masked tokens",
    "generate": "write text",
    "embed": "vectors of lines",
    "contrast": "train a model for vectors of sentences",
    "average": "average the last checkpoints of a run",
    "export": "convert a model for transformers",
    "plot": "curves, attention, nearest neighbours, report",
    "plan": "memory, disk and time of a run before it starts",
    "benchmark": "measure training steps",
}


def help_text() -> str:
    """The usage, with one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["usage: mlm-dist COMMAND ...", "", *lines, "", "`mlm-dist COMMAND --help` explains a command."])


def main() -> None:
    """Run the command that the command line names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        run_verb(lambda _: print_result(help_text()))
        return
    if name == "--version":
        run_verb(lambda _: print_result(f"mlm_dist {__version__}"))
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        run_verb(lambda _: refuse(f"{name}: unknown command; {hint}"))
        return
    sys.argv[1:] = arguments
    command = importlib.import_module(f"mlm_dist.{name}")
    run_verb(command.main, prints_only_a_log=name == "train")


def refuse(message: str) -> None:
    """Raise a `UserError`."""
    raise UserError(message)


if __name__ == "__main__":
    main()
