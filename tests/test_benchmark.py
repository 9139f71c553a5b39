"""The benchmark as a user runs it."""

import importlib.util
import json
from pathlib import Path

import pytest

from mlm_dist.benchmark import main
from mlm_dist.errors import UserError
from tests.conftest import tiny_flags, verb

pytestmark = pytest.mark.multiprocess


@pytest.mark.slow
@pytest.mark.long
def test_the_benchmark_prints_tables_and_saves_json_and_a_plot(corpus_folder: Path, tmp_path: Path) -> None:
    flags = tiny_flags(corpus_folder, tmp_path / "unused")
    options = ["--rounds", 2, "--rows", 8, "--against", "naive", "transformers", "--out", tmp_path / "out"]
    result = verb("benchmark", *flags, *options)
    assert result.returncode == 0, result.stderr
    for text in (
        "| tokens/s | mlm_dist speed-up |",
        "| naive | 8 |",
        "| transformers | 8 |",
        "| fraction of the ceiling |",
        "| prepare |",
    ):
        assert text in result.stdout
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8"))
    mlm_dist, naive, _ = results["peers"]
    assert (mlm_dist["name"], mlm_dist["speed_up"], naive["name"]) == ("mlm_dist", 1.0, "naive")
    assert naive["speed_up"] == pytest.approx(naive["seconds"] / mlm_dist["seconds"])
    step = results["step"]
    assert step["tokens_per_second"] == pytest.approx(16 * 16 / step["seconds"])
    assert step["share_of_ceiling"] == pytest.approx(step["flops"] / step["seconds"] / results["ceiling_flops"])
    assert (tmp_path / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against", "nobody"], "invalid choice: 'nobody'"),
        (["--rounds", "0"], "--rounds is 0: it must be at least 1"),
        (["--rows", "many"], "--rows is many: it must be a whole number"),
        (["--optim.lrr", "1"], "did you mean optim.lr?"),
        (["--data.path", "nowhere"], "there is no such corpus or text"),
        (["--out", "setup.cfg"], "--out setup.cfg: File exists"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["--to_loss", "3"], "--to_loss trains --configs: give at least one"),
        (["--to_loss", "3", "--configs", "novels", "configs/novels.yaml"], "two of them have the same name"),
        (["--to_loss", "3", "--configs", "novels", "--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["--to_loss", "low", "--configs", "novels"], "--to_loss is low: it must be a number"),
        (["--to_loss", "nan", "--configs", "novels"], "--to_loss is nan: it must be above 0"),
        (["--to_loss", "3", "--configs", "novels", "--config", "novels_fast"], "--config: --to_loss sets it"),
        (["--configs", "novels"], "--configs are for --to_loss"),
    ],
)
def test_a_user_error_is_reported_in_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    result = verb("benchmark", "--out", tmp_path / "out", *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_peer_that_is_not_installed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="transformers is not installed: run `pip install"):
        main(["--against", "transformers", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.long
def test_configs_and_transformers_are_trained_to_a_loss(corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{}\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("optim: {lr: 3.0e-3}\n", encoding="utf-8")
    flags = tiny_flags(corpus_folder, tmp_path / "unused", train__max_iters=10, train__eval_interval=5)
    flags = [flag for flag in flags if not flag.startswith("--run_dir")]
    options = ["--to_loss", 9, "--configs", tmp_path / "a.yaml", tmp_path / "b.yaml", "--seeds", 1]
    result = verb("benchmark", *flags, *options, "--against", "transformers", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    for name in ("a", "b", "transformers-0.001"):  # the best of three rates
        assert f"| {name} | 1 of 1 |" in result.stdout
    results = json.loads((tmp_path / "out" / "to_loss.json").read_text(encoding="utf-8"))
    assert results["runs"]["a"][0]["steps"] == 0  # the loss of the initial parameters is below 9
    assert (tmp_path / "out" / "to_loss.png").read_bytes().startswith(b"\x89PNG")
