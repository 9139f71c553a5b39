"""Evaluate a trained model: `python -m mlm_dist.evaluate --run RUN_DIR`, alone or under torchrun."""

import json
from argparse import ArgumentParser

from mlm_dist.arguments import add_device, named_path, read_lines, run_parser
from mlm_dist.config import MaskingConfig
from mlm_dist.config_reading import FLAG, Problems, Setting, validate
from mlm_dist.errors import UserError
from mlm_dist.exit_codes import run_verb
from mlm_dist.output import print_result


def build_parser() -> ArgumentParser:
    """Build the command-line parser."""
    parser = run_parser(
        "evaluate",
        "Compute the loss and accuracy of a trained model on masked tokens of validation text; or, with --lines, "
        "the pseudo-log-likelihood of each line (each token is masked in turn). Under torchrun, the processes share "
        "the work.",
        "--run runs/novels --data another_novel.txt",
    )
    parser.add_argument(
        "--data",
        type=named_path,
        metavar="PATH",
        help="a prepared corpus, for its validation split, or a file or folder of texts, for all of its text "
        "(default: the corpus of the run, or each corpus of its mixture)",
    )
    parser.add_argument(
        "--encoding",
        metavar="ENCODING",
        help="character encoding of the texts that --data names (default: utf-8)",
    )
    parser.add_argument(
        "--mask_prob",
        type=float,
        metavar="P",
        help="mask this fraction of the tokens, always with [MASK], instead of masking as in training",
    )
    parser.add_argument(
        "--mask_prob_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="sample the mask rate of each row from this range instead; with 0 1, the loss is an upper bound on the "
        "negative log-likelihood, which compares generators",
    )
    parser.add_argument(
        "--lines",
        type=named_path,
        metavar="FILE",
        help="score each line of this UTF-8 file instead; - for standard input",
    )
    parser.add_argument(
        "--within_word",
        action="store_true",
        help="with --lines: also mask the tokens that follow in the same word",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=64,
        metavar="N",
        help="rows per forward pass of each process (default: %(default)s)",
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: list[str]) -> None:
    """Print loss and accuracy, or the score of each line."""
    given = build_parser().parse_args(arguments)
    if given.batch_size < 1:
        raise UserError(f"--batch_size is {given.batch_size}: it must be at least 1")
    if given.lines is not None and given.data is not None:
        raise UserError("--lines and --data: give one of them")
    if given.encoding and given.data is None:
        raise UserError("--encoding needs --data")
    if given.within_word and given.lines is None:
        raise UserError("--within_word needs --lines")
    masking = read_masking(given.mask_prob, given.mask_prob_range)
    if masking and given.lines is not None:
        flag = "--mask_prob_range" if given.mask_prob is None else "--mask_prob"
        raise UserError(f"{flag} and --lines: give one of them")
    # Imported here, so that --help and user errors do not wait for torch.
    from mlm_dist.distributed import Processes  # noqa: PLC0415
    from mlm_dist.evaluation import evaluate_text, with_encoding, with_one_corpus  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415
    from mlm_dist.inference.results import describe  # noqa: PLC0415
    from mlm_dist.inference.scoring import score_on_all_ranks  # noqa: PLC0415

    processes = Processes(given.device)
    with processes.raise_on_all_ranks():
        model = TrainedModel(given.run, processes.device, given.step)
    with processes.report_missing_ranks("run the command again"):
        if given.lines is not None:
            lines = processes.on_rank_zero(lambda: read_lines(str(given.lines)))
            scores = score_on_all_ranks(lambda texts: model.score(texts, given.within_word), lines, processes)
            report = [
                json.dumps({"text": line} | score._asdict(), ensure_ascii=False)
                if given.json
                else f"{score.log_likelihood:.4f}\t{score.tokens}\t{line}"
                for line, score in zip(lines, scores, strict=True)
            ]
        else:
            text = with_encoding(model.config, given.encoding or "utf-8")
            configs = with_one_corpus(model.config) if given.data is None else [text]
            results = [
                evaluate_text(model.encoder, config, model.tokenizer, given.data, processes, given.batch_size, masking)
                for config in configs
            ]
            kind = "token" if (masking or model.config.masking).is_sampled else "masked token"
            report = [describe(results, model.config.data, kind, given.json)]
    if processes.is_rank_zero:
        print_result(*report)
    processes.close()


def read_masking(rate: float | None, bounds: list[float] | None) -> MaskingConfig | None:
    """The masking that the flags ask for; None for that of the run. Raises `UserError` if they are invalid."""
    values = {"mask_prob": rate, "mask_prob_range": bounds}
    given = {name: Setting(name, value, FLAG) for name, value in values.items() if value is not None}
    if len(given) > 1:
        raise UserError("--mask_prob and --mask_prob_range: give one of them")
    problems = Problems()
    masking = validate(MaskingConfig, "", given, problems)
    problems.raise_if_any()
    return masking if given else None


if __name__ == "__main__":
    run_verb(main)
