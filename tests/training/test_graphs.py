"""Masks and loss are one graph each: without a graph break, and without another compilation in later steps."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mlm_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.data.masking import MaskedBatch, Masker
from mlm_dist.data.sampler import Selection
from mlm_dist.distributed import Processes
from mlm_dist.evaluation import evaluate_batches
from mlm_dist.model.encoder import Encoder
from mlm_dist.model.loss import MaskedLoss
from tests.conftest import Rate, at_rate

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ROWS, T = 8, 16


@pytest.fixture(autouse=True)
def compiler() -> Iterator[Any]:
    """The counters of a fresh compiler. A second compilation of a function is an error."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def selection(step: int, epoch: int) -> Selection:
    return Selection.of_epoch(step, epoch, (np.arange(ROWS) + 3 * step) % 40, np.arange(ROWS))


def make_masker(
    corpus: Corpus, rate: Rate = 0.15, unit: Any = "token", replacement: Any = "mask", documents: Any = "isolated"
) -> Masker:
    masking = at_rate(rate)
    masking.unit, masking.replacement = unit, replacement
    config = Config(masking=masking, train=TrainConfig(max_iters=50), data=DataConfig(documents=documents))
    return Masker.from_config(config, T, corpus.tokenizer, seed=1, batch_size=ROWS, device=CPU)


@pytest.mark.parametrize(
    ("rate", "replacement"),
    [
        (0.15, "mask"),
        (0.15, "80/10/10"),
        ((0.5, 0.25), "mask"),
        ((0.5, 0.25), "80/10/10"),
        ([0.0, 1.0], "mask"),  # a sampled rate needs it
    ],
    ids=str,
)
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_compiled_masks_are_those_of_their_own_epoch_step_and_rate(
    rate: Rate, replacement: Literal["mask", "80/10/10"], unit: Literal["token", "word", "span"], corpus: Corpus
) -> None:
    masker = make_masker(corpus, rate, unit, replacement)
    rows = torch.from_numpy(corpus.rows("train", T)[np.arange(ROWS)].astype(np.int64))
    compiled = torch.compile(masker.mask, fullgraph=True, backend="aot_eager")
    batches = []
    for step, epoch in [(0, 0), (1, 0), (25, 1), (49, 2)]:
        inputs = masker.inputs(selection(step, epoch))
        expected, found = masker.mask(rows, inputs), compiled(rows, inputs)
        assert all(torch.equal(a, b) for a, b in zip(vars(expected).values(), vars(found).values(), strict=True))
        batches.append(found.inputs)
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(batches, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tied", "documents"), [(True, "joined"), (False, "joined"), (True, "isolated")])
def test_the_compiled_loss_has_the_gradients_of_the_eager_one_over_50_steps(
    dtype: torch.dtype, tied: bool, documents: str, corpus: Corpus, compiler: Any
) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=300, block_size=T, embedding_dim=16, heads=2, blocks=2, tie_embeddings=tied)
    encoder, masker = Encoder(shape), make_masker(corpus, [0.0, 1.0], documents=documents)
    loss = MaskedLoss(encoder, masker.max_masked(ROWS, 1))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    matrix = corpus.rows("train", T)

    def gradients(function: Any, batch: MaskedBatch) -> list[torch.Tensor]:
        encoder.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            function(**vars(batch)).backward()
        return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]

    for step in range(50):
        chosen = selection(step, step // 20)
        batch = masker(torch.from_numpy(matrix[chosen.rows].astype(np.int64)), chosen)
        eager, found = gradients(loss, batch), gradients(compiled, batch)
        for one, other in zip(eager, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        if step == 20:  # an evaluation, and parameters from a checkpoint
            evaluate_batches(encoder, [batch], torch.ones(300), Processes("cpu"), dtype)
            encoder.load_state_dict({name: value + 0.01 for name, value in encoder.state_dict().items()})
    assert compiler["stats"]["unique_graphs"] == 1
