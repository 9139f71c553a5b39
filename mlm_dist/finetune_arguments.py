"""The command line of `finetune`."""

from argparse import ArgumentParser, Namespace

from mlm_dist.arguments import add_device, named_path, run_parser
from mlm_dist.errors import UserError

OF_FULL = {
    "lr": (5e-4, "peak learning rate"),
    "batch_size": (32, "texts per step, over all processes"),
    "epochs": (5, "most passes over the texts"),
    "patience": (2, "passes without a better dev metric after which it ends"),
}


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = run_parser(
        "finetune",
        "Measure how well a trained model learns a labelled task, beside three baselines: the most frequent class, "
        "TF-IDF with a linear model, and the same encoder untrained. Encoders learn by a linear probe on their pooled "
        "states, which is saved as DIR/model/head.json, or by full fine-tuning, which is saved in DIR/model as "
        "AutoModelForSequenceClassification loads it. A command that was killed continues if it is repeated. Under "
        "torchrun, the processes share full fine-tuning.",
        "--run runs/novels --train train.jsonl --test test.jsonl --out results/task",
    )
    files = {
        "train": "labelled texts to learn from: JSON Lines, CSV, TSV, or any other text with `LABEL TEXT` in each line",
        "dev": "texts to choose by: how much to regularize, when to stop (default: a tenth of FILE, another per seed)",
        "test": "texts to measure on (default: a fifth of the training file)",
    }
    for name, purpose in files.items():
        parser.add_argument(f"--{name}", type=named_path, required=name == "train", metavar="FILE", help=purpose)
    parser.add_argument("--out", type=named_path, required=True, metavar="DIR", help="folder for model and results")
    fields = {"text": "text", "pair": "second text; texts are then read in pairs", "label": "label"}
    for name, purpose in fields.items():
        default, hint = (None, "") if name == "pair" else (name, " (default: %(default)s)")
        described = f"field of a record that is its {purpose}{hint}"
        parser.add_argument(f"--{name}_key", default=default, metavar="FIELD", help=described)
    parser.add_argument("--encoding", default="utf-8", help="character encoding of the files (default: %(default)s)")
    parser.add_argument("--score", action="store_true", help="labels are scores (numbers), not classes")
    parser.add_argument(
        "--method",
        choices=["frozen", "full"],
        default="frozen",
        help="frozen: a linear probe on the mean of the states over the tokens of a text, in one process; full: all "
        "parameters learn (default: %(default)s)",
    )
    parser.add_argument(
        "--layer", type=int, help="frozen: layer whose states are pooled; 0: the embeddings (default: the last)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    for name, (value, purpose) in OF_FULL.items():
        parser.add_argument(f"--{name}", type=type(value), help=f"full: {purpose} (default: {value})")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def complete(given: Namespace) -> None:
    """Fill in the numbers of full fine-tuning that are not given.

    Raises:
        UserError: a number is out of bounds, or an option belongs to the other method.
    """
    for name, (value, _) in OF_FULL.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
        elif given.method != "full":
            raise UserError(f"--{name} needs --method full")
    for name in ("seeds", "batch_size", "epochs", "patience"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} is {getattr(given, name)}: it must be at least 1")
    if not 0 < given.lr <= 1:
        raise UserError(f"--lr is {given.lr}: it must be above 0 and at most 1")
    if given.layer is not None and given.method == "full":
        raise UserError("--layer needs --method frozen: full fine-tuning reads the last layer")
