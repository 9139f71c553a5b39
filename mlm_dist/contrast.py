"""Train for sentence vectors: `python -m mlm_dist.contrast --run RUN_DIR --out DIR LINES.txt`."""

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_dist.arguments import add_device, add_new_folder, named_path, read_lines, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_log

if TYPE_CHECKING:
    from mlm_dist.inference.model import TrainedModel

NOTE = """\
After the run, the model was trained contrastively (SimCSE) on {lines:,} lines of `{file}`: {settings}. The figures \
above are from before this training, which did not include masked prediction: do not fill masks with this model."""


def parse(arguments: list[str]) -> Namespace:
    """Parse the command line."""
    parser = run_parser(
        "contrast",
        "Train a model for sentence vectors on the lines of a text, by pairing each with itself under another dropout "
        "(SimCSE), and export it for sentence-transformers. --sts prints how well its vectors agree with the scores of "
        "pairs, before and after.",
        "--run runs/novels --out exported/sentences lines.txt --sts sts.tsv",
    )
    add_new_folder(parser)
    parser.add_argument("lines", nargs="?", default="-", metavar="LINES", help="UTF-8 text (default: standard input)")
    parser.add_argument(
        "--sts",
        type=named_path,
        metavar="FILE",
        help="two texts and the score of their similarity in each line, with tabs between them",
    )
    for name, kind, default, purpose in (
        ("steps", int, 300, "number of updates"),
        ("batch_size", int, 64, "lines in a step"),
        ("lr", float, 3e-5, "learning rate, which falls linearly to 0"),
        ("dropout", float, 0.1, "fraction of dropout, which makes the two vectors of a line differ"),
        ("temperature", float, 0.05, "divides the cosines of vectors"),
        ("seed", int, 0, "of the order of the lines, and of dropout"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{purpose} (default: %(default)s)")
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train contrastively, and export the model."""
    given = parse(arguments)
    if not 0 < given.dropout < 1:
        raise UserError(
            f"--dropout is {given.dropout}: it must be above 0 and below 1, or the two vectors are the same"
        )
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.files import refuse_existing  # noqa: PLC0415
    from mlm_dist.huggingface.export import check_exportable, export_model  # noqa: PLC0415
    from mlm_dist.huggingface.tokenizer_file import convert_tokenizer  # noqa: PLC0415
    from mlm_dist.inference.similarity import rank_correlation  # noqa: PLC0415
    from mlm_dist.model.encoder import as_encoder  # noqa: PLC0415
    from mlm_dist.model.registry import build_model  # noqa: PLC0415
    from mlm_dist.texts.scored_pairs import read_scored_pairs  # noqa: PLC0415
    from mlm_dist.training.contrastive import ContrastiveStage, train_contrastively  # noqa: PLC0415

    refuse_existing(given.out)
    stage = ContrastiveStage(given.steps, given.batch_size, given.lr, given.temperature, given.seed)
    pairs = read_scored_pairs(given.sts) if given.sts else []
    lines = read_lines(given.lines)
    model = load(given.run, given.device, given.step)
    check_exportable(model.config.model)
    convert_tokenizer(model.tokenizer)  # before the training, which would be lost
    texts = different_texts(model, lines)
    name = "standard input" if given.lines == "-" else given.lines
    if len(texts) < stage.batch_size:
        raise UserError(f"{name}: it has {len(texts)} different lines: give more, or a smaller --batch_size")
    before = rank_correlation(model, pairs) if pairs else 0.0
    encoder = as_encoder(build_model(replace(model.config.model, dropout=given.dropout)).to(model.device), "contrast")
    encoder.load_state_dict(model.encoder.state_dict())
    losses = train_contrastively(encoder, texts, stage)
    model.encoder.load_state_dict(encoder.state_dict())
    print_log(f"contrastive loss: {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last of {stage.steps}")
    settings = ", ".join(f"{name} {value}" for name, value in {"dropout": given.dropout, **asdict(stage)}.items())
    note = NOTE.format(lines=len(texts), file=Path(name).name, settings=settings)
    if pairs:
        after = rank_correlation(model, pairs)
        figure = f"Spearman correlation: {before:.4f} before, {after:.4f} after ({after - before:+.4f})"
        print_log(f"{figure}, on {len(pairs):,} pairs of {given.sts}")
        note += f" {figure}, on {len(pairs):,} pairs of `{given.sts.name}`."
    model.encoder.cpu()
    export_model(model, given.out, ["sentence_transformers"], note)
    print_log(f"{given.out}: for SentenceTransformer({str(given.out)!r})")


def different_texts(model: "TrainedModel", lines: list[str]) -> list[list[int]]:
    """The token ids of lines, without empty ones and repetitions, cut at the block size."""
    ids = (model.tokenizer.encode(line).tolist()[: model.config.model.block_size] for line in lines)
    return [list(text) for text in dict.fromkeys(map(tuple, ids)) if text]


if __name__ == "__main__":
    run_verb(main)
