"""`python -m mlm_dist.evaluate`, run from the command line."""

import json
import math
import shlex
import sys
from pathlib import Path

import pytest

import mlm_dist
from mlm_dist.data.preparation import SAMPLE_TEXT
from tests.conftest import start, torchrun, verb

TEXT = "Aunt Zoë went up the stairs to the hall, unbelievably. " * 20
LINES = ["The lamp went out.", "", "Aunt Zoë went up the stairs to the hall, unbelievably."]


def test_the_figures_of_the_validation_split_are_printed(run_dir: Path) -> None:
    figures = json.loads(verb("evaluate", "--run", run_dir, "--json").stdout)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert 0 <= figures["accuracy"] <= figures["top5_accuracy"] <= 1
    printed = verb("evaluate", "--run", run_dir).stdout
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2) / figures["bytes_per_token"])
    for figure in (
        f"{figures['loss']:.4f} nats",
        f"{figures['perplexity']:,.2f}",
        f"bits per byte   {figures['bits_per_byte']:.4f} over masked tokens",
        f"{figures['top5_accuracy']:.2%}",
    ):
        assert figure in printed


def test_the_bytes_of_the_masked_tokens_are_counted(run_dir: Path) -> None:
    model = mlm_dist.load(run_dir, "cpu")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(SAMPLE_TEXT.read_text(encoding="utf-8"))
    expected = [len(tokenizer.encoding.decode_single_token_bytes(id_)) for id_ in ids]
    assert tokenizer.byte_lengths[ids].tolist() == expected
    assert tokenizer.byte_lengths[[tokenizer.end_id, tokenizer.mask_id]].tolist() == [0, 0]
    # With a rate sampled from [0, 1], each token counts once on average.
    arguments = ("--run", run_dir, "--data", SAMPLE_TEXT, "--mask_prob_range", "0", "1", "--json")
    figures = json.loads(verb("evaluate", *arguments).stdout)
    assert figures["bytes_per_token"] == pytest.approx(sum(expected) / len(expected), rel=0.02)
    # At a constant rate, some slots of a row are not used.
    constant = json.loads(verb("evaluate", "--run", run_dir, "--data", SAMPLE_TEXT, "--json").stdout)
    assert constant["bytes_per_token"] == pytest.approx(sum(expected) / len(expected), rel=0.05)


def test_the_encoding_of_a_text_is_named(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "utf-8.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "cp1252.txt").write_text(TEXT, encoding="cp1252")
    expected = verb("evaluate", "--run", run_dir, "--data", tmp_path / "utf-8.txt").stdout
    other = "--run", run_dir, "--data", tmp_path / "cp1252.txt"
    assert verb("evaluate", *other, "--encoding", "cp1252").stdout == expected
    refused = verb("evaluate", *other)
    assert refused.returncode == 2
    assert "not utf-8 at byte" in refused.stderr
    assert "set its encoding (--encoding," in refused.stderr
    assert verb("evaluate", "--run", run_dir, "--encoding", "cp1252").stderr.endswith("--encoding needs --data\n")


def test_a_sampled_mask_rate_gives_a_bound_over_all_tokens(run_dir: Path) -> None:
    arguments = ("--run", run_dir, "--data", SAMPLE_TEXT, "--mask_prob_range", "0", "1")
    figures = json.loads(verb("evaluate", *arguments, "--json").stdout)
    printed = verb("evaluate", *arguments).stdout
    assert f"{figures['loss']:.4f} nats per token\n" in printed
    assert f"tokens          {figures['tokens']:,}\n" in printed
    assert "masked" not in printed


@pytest.mark.multiprocess
def test_the_figures_do_not_depend_on_batch_size_and_world_size(run_dir: Path) -> None:
    arguments = ("--run_dir", run_dir, "--data", SAMPLE_TEXT)
    one_process = verb("evaluate", *arguments)
    assert one_process.returncode == 0, one_process.stderr
    assert verb("evaluate", *arguments, "--batch_size", 3).stdout == one_process.stdout
    several_processes = torchrun(3, *arguments, verb="evaluate")
    assert several_processes.stdout == one_process.stdout, several_processes.stderr


@pytest.mark.multiprocess
def test_the_scores_of_lines_do_not_depend_on_the_world_size(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    arguments = ("--run_dir", run_dir, "--lines", tmp_path / "lines.txt", "--within_word")
    one_process = verb("evaluate", *arguments)
    assert one_process.returncode == 0, one_process.stderr
    scores = mlm_dist.load(run_dir, "cpu").score(LINES, within_word=True)
    for line, text, score in zip(one_process.stdout.splitlines(), LINES, scores, strict=True):
        log_likelihood, tokens, printed = line.split("\t")
        assert float(log_likelihood) == pytest.approx(score.log_likelihood, abs=2e-4)
        assert int(tokens) == score.tokens
        assert printed == text
    several_processes = torchrun(2, *arguments, verb="evaluate")
    assert several_processes.stdout == one_process.stdout, several_processes.stderr


def test_scores_can_be_printed_as_json(run_dir: Path) -> None:
    result = verb("evaluate", "--run", run_dir, "--lines", "-", "--json", stdin="Aunt Zoë\n")
    score = json.loads(result.stdout)
    assert score["text"] == "Aunt Zoë"
    assert score["log_likelihood"] < 0
    assert score["tokens"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.txt"], "nowhere.txt: there is no such file or folder"),
        (["--lines", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--lines", ""], "argument --lines: it is empty"),
        (["--data", ""], "argument --data: it is empty"),
        (["--within_word"], "--within_word needs --lines"),
        (["--lines", "-", "--data", "x"], "--lines and --data: give one of them"),
        (["--batch_size", "0"], "--batch_size is 0: it must be at least 1"),
        (["--mask_prob", "15"], "error: --mask_prob is 15.0: it must be a number, above 0 and below 1"),
        (["--mask_prob_range", "1", "0"], "mask_prob_range is [1.0, 0.0]: LOW must be below HIGH"),
        (["--mask_prob_range", "0", "2"], "error: --mask_prob_range is [0.0, 2.0]: it must be a list of 2 values"),
        (["--mask_prob", "much"], "error: --mask_prob is much: it must be a number"),
        (["--mask_prob", "0.3", "--mask_prob_range", "0", "1"], "--mask_prob and --mask_prob_range: give one of them"),
        (["--mask_prob", "0.3", "--lines", "-"], "--mask_prob and --lines: give one of them"),
        (["--mask_prob_range", "0", "1", "--lines", "-"], "--mask_prob_range and --lines: give one of them"),
    ],
)
def test_a_user_error_is_one_line(run_dir: Path, arguments: list[str], message: str) -> None:
    result = verb("evaluate", "--run", run_dir, *arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["evaluate", "--lines", "lines.txt"], ["fill", "a [MASK]"]])
def test_results_that_cannot_be_written_are_an_error(run_dir: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    command = shlex.join([sys.executable, "-m", f"mlm_dist.{arguments[0]}", "--run", str(run_dir), *arguments[1:]])
    result = start(["bash", "-c", f"{command} >/dev/full"], cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "mlm_dist: error: the output cannot be written: No space left on device\n"
