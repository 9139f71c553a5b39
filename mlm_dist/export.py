"""Export a trained model to transformers: `python -m mlm_dist.export --run RUN_DIR --out DIR`."""

from mlm_dist.arguments import named_path, run_parser
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_log


def main(arguments: list[str]) -> None:
    """Export a trained model to a folder that transformers loads."""
    parser = run_parser(
        "export",
        "Export a trained model to a folder that stock transformers loads: parameters, tokenizer, model card. For an "
        "unfinished run, its newest checkpoint is exported.",
        "--run runs/novels --out exported/novels",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="folder to create; must not exist yet"
    )
    given = parser.parse_args(arguments)
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.huggingface.export import export_model  # noqa: PLC0415

    export_model(load(given.run, "cpu", given.step), given.out)
    size = sum(file.stat().st_size for file in given.out.iterdir())
    print_log(f"{given.out}: {size / 1e6:.1f} MB, for AutoModelForMaskedLM.from_pretrained({str(given.out)!r})")


if __name__ == "__main__":
    run_verb(main)
