"""Export a trained model to transformers: `python -m mlm_dist.export --run RUN_DIR --out DIR`."""

from mlm_dist.arguments import add_new_folder, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_log

ADDITIONS = {
    "sentence_transformers": "also write the files of sentence-transformers, whose encode then returns what embed does",
    "onnx": "also write model.onnx for onnxruntime, which computes the same logits (needs the extra onnx)",
}


def main(arguments: list[str]) -> None:
    """Export a trained model to a folder that transformers loads."""
    parser = run_parser(
        "export",
        "Export a trained model to a folder that stock transformers loads: parameters, tokenizer, model card. For an "
        "unfinished run, its newest checkpoint is exported.",
        "--run runs/novels --out exported/novels",
    )
    add_new_folder(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="export every checkpoint and milestone of the run, each to a folder such as DIR/step-00000500",
    )
    for addition, purpose in ADDITIONS.items():
        parser.add_argument(
            f"--{addition}", action="append_const", dest="additions", const=addition, default=[], help=purpose
        )
    given = parser.parse_args(arguments)
    if given.all and given.step is not None:
        raise UserError("--all and --step: give one of them")
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.huggingface.export import export_all, export_model  # noqa: PLC0415

    if given.all:
        folders = export_all(given.run, given.out, given.additions)
    else:
        export_model(load(given.run, "cpu", given.step), given.out, given.additions)
        folders = [given.out]
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print_log(f"{folder}: {size / 1e6:.1f} MB, for AutoModelForMaskedLM.from_pretrained({str(folder)!r})")


if __name__ == "__main__":
    run_verb(main)
