"""Embed lines with a trained model: `python -m mlm_dist.embed --run RUN_DIR --out FILE.npy LINES.txt`."""

from pathlib import Path

from mlm_dist.arguments import add_device, named_path, read_lines, run_parser
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_log


def main(arguments: list[str]) -> None:
    """Write one vector per line of text."""
    parser = run_parser(
        "embed",
        "Pool the hidden states of each line of a text, and save a (lines, dim) array as .npy. The vector of an empty "
        "line is zero.",
        "--run runs/novels --out vectors.npy lines.txt",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="FILE", help="file to write, such as vectors.npy"
    )
    parser.add_argument("lines", nargs="?", default="-", metavar="LINES", help="UTF-8 text (default: standard input)")
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="pool the output of block N, or the embeddings (0) (default: the last block, normalized)",
    )
    parser.add_argument(
        "--pool",
        choices=["mean", "cls", "weighted"],
        default="mean",
        help="mean over the tokens of a line; cls: its first token alone; weighted: the mean with weights 1, 2, 3, ... "
        "(default: %(default)s)",
    )
    parser.add_argument("--normalize", action="store_true", help="scale each vector to a length of 1")
    add_device(parser)
    given = parser.parse_args(arguments)
    if not given.out.parent.is_dir() or (given.out.exists() and not given.out.is_file()):
        raise UserError(f"--out {given.out}: it must be a file in an existing folder")
    if given.out.resolve() == Path(given.lines).resolve():
        raise UserError(f"--out {given.out}: it is the input file: choose another file")
    lines = read_lines(given.lines)
    # Imported here, so that --help and user errors do not wait for torch.
    import numpy as np  # noqa: PLC0415

    from mlm_dist import load  # noqa: PLC0415
    from mlm_dist.files import replacing  # noqa: PLC0415

    model = load(given.run, given.device, given.step)
    vectors = model.embed(lines, layer=given.layer, pool=given.pool, normalize=given.normalize)
    try:
        with replacing(given.out) as file:
            np.save(file, vectors)
    except OSError as error:
        raise UserError(f"--out {given.out}: {error.strerror}") from error
    print_log(f"{given.out}: {len(vectors)} vectors of dimension {vectors.shape[1]}")


if __name__ == "__main__":
    run_verb(main)
