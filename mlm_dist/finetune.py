"""Measure a trained model on a labelled task: `python -m mlm_dist.finetune --run RUN_DIR --train FILE --out DIR`."""

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.finetune_arguments import build_parser, complete
from mlm_dist.output import print_result, warn

if TYPE_CHECKING:
    from mlm_dist.distributed import Processes
    from mlm_dist.inference.model import TrainedModel


def main(arguments: list[str]) -> None:
    """Print the table, and write it with the model."""
    given = build_parser().parse_args(arguments)
    complete(given)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.distributed import Processes  # noqa: PLC0415
    from mlm_dist.finetuning.linear import import_sklearn  # noqa: PLC0415
    from mlm_dist.inference.task_report import from_json, to_text  # noqa: PLC0415

    import_sklearn()
    processes = Processes(given.device)
    with processes.report_missing_ranks("run the command again"):
        if given.method == "frozen" and processes.world_size > 1:
            raise UserError("--method frozen needs one process: leave out torchrun, or give --method full")
        content = run(given, processes)
    if processes.is_rank_zero:
        print_result(json.dumps(content) if given.json else f"{to_text(from_json(content))}\n{given.out}")
    processes.close()


def run(given: Namespace, processes: "Processes") -> dict[str, Any]:
    """Read the task, compare, and return the results.

    Raises:
        UserError: the model or a file cannot be read, or the folder has other results.
    """
    from mlm_dist.finetuning.classifier import check_convertible  # noqa: PLC0415
    from mlm_dist.finetuning.comparison import Method, compare, contestants  # noqa: PLC0415
    from mlm_dist.finetuning.examples import read_task, repeated  # noqa: PLC0415
    from mlm_dist.finetuning.full import Recipe  # noqa: PLC0415
    from mlm_dist.finetuning.report import to_json  # noqa: PLC0415
    from mlm_dist.finetuning.result_folder import ResultFolder  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415
    from mlm_dist.texts.labelled_texts import LabelFormat  # noqa: PLC0415

    label_format = LabelFormat(given.text_key, given.pair_key, given.label_key, given.encoding)
    task = processes.on_rank_zero(
        lambda: read_task(given.train, given.dev, given.test, label_format, is_score=given.score)
    )
    with processes.raise_on_all_ranks():
        model = TrainedModel(given.run, processes.device, given.step)
        model.check_layer(given.layer)
        if given.method == "full":
            check_convertible(model.config.model)
        for seed in range(given.seeds):  # before anything is written
            task.split(seed)
    recipe = Recipe(given.lr, given.batch_size, given.epochs, given.patience) if given.method == "full" else None
    folder, settings = ResultFolder(given.out), processes.on_rank_zero(lambda: settings_of(given, model))
    processes.on_rank_zero(lambda: folder.check(settings, given.seeds))
    every = [*contestants(model, task, Method(recipe, given.layer), processes)]
    processes.on_rank_zero(lambda: folder.open(settings, given.seeds))
    if count := repeated(task):
        warn(f"{count:,} of {len(task.test):,} test texts are also training or dev texts: the metrics are inflated")
    results = compare(every, given.seeds, folder, processes)
    content = to_json(task, results, settings)
    processes.on_rank_zero(lambda: folder.write_table(content))
    folder.close()
    return content


def settings_of(given: Namespace, model: "TrainedModel") -> dict[str, Any]:
    """What the results depend on. The number of seeds may grow."""
    from mlm_dist.finetuning.result_folder import digest  # noqa: PLC0415
    from mlm_dist.inference.task_report import PARAMETERS  # noqa: PLC0415
    from mlm_dist.run.origin import digest as parameters_digest  # noqa: PLC0415

    of_full = () if given.method == "frozen" else ("lr", "batch_size", "epochs", "patience")
    keys = ("method", "score", "text_key", "pair_key", "label_key", "encoding", *of_full)
    paths = {name: getattr(given, name) for name in ("train", "dev", "test")}
    return {
        **{key: getattr(given, key) for key in keys},
        "layer": model.config.model.blocks if given.layer is None else given.layer,
        PARAMETERS: parameters_digest(model.encoder.state_dict()),
        **{f"the {name} file (SHA-256)": digest(path) if path else None for name, path in paths.items()},
    }


if __name__ == "__main__":
    run_verb(main)
