"""`python -m mlm_dist.fill`, run from the command line."""

import json
from pathlib import Path

import pytest

import mlm_dist
from mlm_dist.fill import percent
from tests.conftest import verb


def test_texts_and_candidates_are_printed(run_dir: Path) -> None:
    result = verb("fill", "--run", run_dir, "--top", 2, "The [MASK] and the [MASK*2].", "A [MASK]")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["The [MASK] and the [MASK*2].", "A [MASK]"]
    assert [line.count("%") for line in lines] == [0, 2, 2, 1, 0, 2]
    filled = mlm_dist.load(run_dir, "cpu").fill("The [MASK] and the [MASK*2].", 2).text
    assert lines[3].endswith(f": {filled}")


def test_texts_are_read_from_standard_input_if_none_is_given(run_dir: Path) -> None:
    texts = ["The [MASK].", "Zoë [MASK]\u2028here"]
    piped = verb("fill", "--run", run_dir, "--json", stdin="".join(f"{text}\r\n" for text in texts))
    given = verb("fill", "--run", run_dir, "--json", *texts)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == given.stdout


def test_json_contains_the_predictions_of_the_model(run_dir: Path) -> None:
    text = "The [MASK] and the [MASK]."
    result = verb("fill", "--run", run_dir, "--top", 3, "--json", text)
    filling = mlm_dist.load(run_dir, "cpu").fill(text, 3)
    answer = json.loads(result.stdout)
    assert answer["text"] == text
    assert answer["filled"] == filling.text
    assert answer["probability"] == pytest.approx(filling.probability)
    assert [[word["text"] for word in mask] for mask in answer["masks"]] == [
        [word.text for word in mask] for mask in filling.masks
    ]


@pytest.mark.parametrize(
    ("probability", "printed"),
    [(1.0, "100%"), (0.126, "13%"), (0.01, "1%"), (0.00994, "0.99%"), (0.000123, "0.012%"), (1e-9, "1e-07%")],
)
def test_no_probability_is_printed_as_0(probability: float, printed: str) -> None:
    assert percent(probability) == printed


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["no gap"], "", "the text contains no [MASK]: no gap"),
        (["--top", "0", "a [MASK]"], "", "--top is 0: it must be at least 1"),
        (["--tpo", "3", "a [MASK]"], "", "unrecognized arguments: --tpo"),
        ([], "", "standard input: it is empty"),
        ([b"a [MASK] \xff"], "", "an argument is not UTF-8"),
    ],
)
def test_user_errors_are_one_line(run_dir: Path, arguments: list[str | bytes], stdin: str, message: str) -> None:
    given = [
        argument.decode(errors="surrogateescape") if isinstance(argument, bytes) else argument for argument in arguments
    ]
    result = verb("fill", "--run", run_dir, *given, stdin=stdin)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not result.stdout


def test_a_folder_without_a_run_is_reported(tmp_path: Path) -> None:
    result = verb("fill", "--run", tmp_path, "a [MASK]")
    assert result.returncode == 2
    assert result.stderr == f"mlm_dist: error: {tmp_path} is not a run directory: it contains no config.yaml\n"
