"""A trained model for transformers: `python -m mlm_dist.export --run RUN_DIR --out DIR`."""

from mlm_dist.command_line import named_path, run_parser, run_verb
from mlm_dist.output import print_log


def main(arguments: list[str]) -> None:
    """Write a trained model into a folder that transformers loads."""
    parser = run_parser(
        "export",
        "Write a trained model into a folder that transformers loads as it is: weights, tokenizer, model card. Of a "
        "run that is not done the newest checkpoint is taken.",
        "--run runs/novels --out exported/novels",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="folder to make; must not exist yet"
    )
    given = parser.parse_args(arguments)
    # Only now, so that --help and mistakes are answered without waiting for torch.
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.huggingface.export import export_model  # noqa: PLC0415

    export_model(load(given.run, "cpu"), given.out)
    size = sum(file.stat().st_size for file in given.out.iterdir())
    print_log(f"{given.out}: {size / 1e6:.1f} MB, for AutoModelForMaskedLM.from_pretrained({str(given.out)!r})")


if __name__ == "__main__":
    run_verb(main)
