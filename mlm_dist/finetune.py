"""Measure a trained model on a labelled task: `python -m mlm_dist.finetune --run RUN_DIR --train FILE --out DIR`."""

import json
import math
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from mlm_dist.arguments import add_device, named_path, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result, warn

if TYPE_CHECKING:
    from mlm_dist.distributed import Processes
    from mlm_dist.inference.model import TrainedModel


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
    parser.add_argument("--lr", type=float, default=5e-4, help="full: peak learning rate (default: %(default)s)")
    numbers = {
        "seeds": (3, "number of seeds"),
        "batch_size": (32, "full: texts per step, over all processes"),
        "epochs": (5, "full: most passes over the texts"),
        "patience": (2, "full: passes without a better dev part after which it ends"),
    }
    for name, (value, purpose) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{purpose} (default: %(default)s)")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: list[str]) -> None:
    """Print the table, and write it with the model."""
    given = build_parser().parse_args(arguments)
    check_numbers(given)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.distributed import Processes  # noqa: PLC0415
    from mlm_dist.finetuning.linear import import_sklearn  # noqa: PLC0415
    from mlm_dist.finetuning.report import to_text  # noqa: PLC0415

    import_sklearn()
    processes = Processes(given.device)
    with processes.report_missing_ranks("run the command again"):
        if given.method == "frozen" and processes.world_size > 1:
            raise UserError("--method frozen needs one process: leave out torchrun, or give --method full")
        content = run(given, processes)
    if processes.is_rank_zero:
        print_result(json.dumps(content) if given.json else f"{to_text(content)}\n{given.out}")
    processes.close()


def check_numbers(given: Namespace) -> None:
    """Raise a `UserError` about a number that is out of bounds, or belongs to the other method."""
    for name in ("seeds", "batch_size", "epochs", "patience"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} is {getattr(given, name)}: it must be at least 1")
    if not (math.isfinite(given.lr) and given.lr > 0):
        raise UserError(f"--lr is {given.lr}: it must be above 0")
    if given.layer is not None and given.method == "full":
        raise UserError("--layer needs --method frozen: full fine-tuning reads the last layer")


def run(given: Namespace, processes: "Processes") -> dict[str, Any]:
    """Read the task, compare, and return the results.

    Raises:
        UserError: the model or a file cannot be read, or the folder has other results.
    """
    from mlm_dist.data.labelled_texts import LabelFormat  # noqa: PLC0415
    from mlm_dist.finetuning.classifier import check_convertible  # noqa: PLC0415
    from mlm_dist.finetuning.comparison import Method, compare, contestants  # noqa: PLC0415
    from mlm_dist.finetuning.examples import read_task, repeated  # noqa: PLC0415
    from mlm_dist.finetuning.full import Recipe  # noqa: PLC0415
    from mlm_dist.finetuning.report import to_json  # noqa: PLC0415
    from mlm_dist.finetuning.result_folder import ResultFolder  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415

    label_format = LabelFormat(given.text_key, given.pair_key, given.label_key, given.encoding)
    task = processes.on_rank_zero(
        lambda: read_task(given.train, given.dev, given.test, label_format, is_score=given.score)
    )
    with processes.raise_on_all_ranks():
        model = TrainedModel(given.run, processes.device, given.step)
        model.check_layer(given.layer)
        if given.method == "full":
            check_convertible(model.config.model)
    recipe = Recipe(given.lr, given.batch_size, given.epochs, given.patience) if given.method == "full" else None
    folder, settings = ResultFolder(given.out), settings_of(given, model)
    processes.on_rank_zero(lambda: folder.check(settings, given.seeds))
    every = [*contestants(model, task, Method(recipe, given.layer), processes)]
    processes.on_rank_zero(lambda: folder.open(settings))
    if count := repeated(task):
        warn(f"{count:,} of {len(task.test):,} test texts are training texts too: the results are too good")
    results = compare(every, given.seeds, folder, processes)
    content = to_json(task, results, settings)
    processes.on_rank_zero(lambda: folder.write_table(content))
    folder.close()
    return content


def settings_of(given: Namespace, model: "TrainedModel") -> dict[str, Any]:
    """What the results depend on. The number of seeds may grow."""
    from mlm_dist.finetuning.result_folder import digest  # noqa: PLC0415
    from mlm_dist.run.origin import digest as parameters_digest  # noqa: PLC0415

    of_full = () if given.method == "frozen" else ("lr", "batch_size", "epochs", "patience")
    keys = ("method", "score", "text_key", "pair_key", "label_key", "encoding", *of_full)
    paths = {name: getattr(given, name) for name in ("train", "dev", "test")}
    return {
        **{key: getattr(given, key) for key in keys},
        "layer": model.config.model.blocks if given.layer is None else given.layer,
        "the parameters (SHA-256)": parameters_digest(model.encoder.state_dict()),
        **{f"the {name} file (SHA-256)": digest(path) if path else None for name, path in paths.items()},
    }


if __name__ == "__main__":
    run_verb(main)
