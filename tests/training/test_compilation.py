"""`compile: on` compiles the loss once; by default, long runs on a GPU do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mlm_dist.config import Config
from mlm_dist.config_reading import parse_config, read_config
from mlm_dist.run.metrics import read_events
from mlm_dist.training import compilation
from mlm_dist.training.compilation import WORTHWHILE_FLOPS, should_compile
from tests.conftest import Result, tiny_flags, verb

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile to torch operations, because inductor takes a minute. A second compilation is an error."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def fails(*_: object) -> Any:
    raise RuntimeError("no compiler\nand more lines")


@pytest.fixture
def train(corpus_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    def train(name: str, **overrides: object) -> Result:
        return verb("train", *tiny_flags(corpus_folder, tmp_path / name, **{"train__max_iters": 6, **overrides}))

    return train


@pytest.mark.parametrize(
    ("key", "device", "share", "expected"),
    [
        ("auto", GPU, 1.0, True),
        ("auto", GPU, 0.99, False),
        ("auto", CPU, 100.0, False),
        ("on", CPU, 0.0, True),
        ("off", GPU, 100.0, False),
    ],
)
def test_a_gpu_compiles_if_the_steps_that_are_left_are_worth_it(
    key: Literal["auto", "on", "off"], device: torch.device, share: float, expected: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(compilation, "step_flops", lambda config: 2 * share * WORTHWHILE_FLOPS / 10)
    config = Config(compile=key)
    assert should_compile(config, device, world_size=2, steps_left=10) == expected
    assert not should_compile(config, device, world_size=2, steps_left=0)
    config.debug = True
    assert not should_compile(config, device, world_size=2, steps_left=10)


def test_the_recipe_is_too_short_to_be_compiled_and_bert_is_not() -> None:
    recipe = parse_config(["--config=novels", "--model.vocab_size=50258"], "train")
    assert not should_compile(recipe, GPU, 1, recipe.train.max_iters)
    bert = parse_config(["--config=bert_base_8gpu", "--model.vocab_size=50304"], "train")
    assert should_compile(bert, GPU, 8, bert.train.max_iters)
    assert not should_compile(bert, GPU, 8, bert.train.max_iters / 10)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"precision": "bf16", "train__micro_batch_size": 4}], ids=str)
def test_a_compiled_run_is_the_same_run(
    overrides: dict[str, Any], train: Callable[..., Result], tmp_path: Path
) -> None:
    torch._dynamo.utils.counters.clear()
    for name in ("on", "off"):
        for steps in (6, 12):  # resumed
            result = train(name, **overrides, compile=name, train__max_iters=steps)
            assert result.returncode == 0, result.stderr
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # also of the resumed run, in this process
    states = [torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("on", "off")]
    assert states[0].keys() == states[1].keys()
    events = [read_events(tmp_path / name / "metrics.jsonl") for name in ("on", "off")]
    for key in ("loss", "val_loss"):
        found, expected = ([event[key] for event in part if key in event] for part in events)
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_model_that_cannot_be_compiled_is_trained_with_a_warning_or_refused_with_a_line(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", fails)
    refused = train("on", compile="on", optim__warmup_iters=1)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert (
        "compile: on, but the model cannot be compiled here (backend='fails' raised: RuntimeError: no compiler)"
        in refused.stderr
    )
    monkeypatch.setattr("mlm_dist.training.step.should_compile", lambda *_: True)
    result = train("auto")
    assert result.returncode == 0
    assert result.stderr.count("cannot be compiled here, so its operations are started one by one") == 1


@pytest.mark.parametrize(("text", "value"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_yaml_may_read_on_and_off_as_true_and_false(text: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"compile: {text}\n", encoding="utf-8")
    config = read_config(file)
    assert config.compile == value
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(file).compile == value


def test_a_run_compiles_more_phases_than_torch_keeps_shapes_of_a_function(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # captures graphs as the real one does, in less time
    count = torch._dynamo.config.recompile_limit + 3
    phases = [{"steps": 1, "batch_size": size, "row_length": 16} for size in range(1, count + 1)]
    result = train("run", compile="on", train__phases=json.dumps(phases), train__max_iters=count + 1)
    assert result.returncode == 0, result.stderr
