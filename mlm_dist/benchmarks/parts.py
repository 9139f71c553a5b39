"""Measurements without a training step: peak matrix throughput, the FLOPs of a step, the encoding rate of texts."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mlm_dist.config import Config
from mlm_dist.data.corpus import TOKENIZER, Corpus
from mlm_dist.data.encoding import Batch, EncodedBatch
from mlm_dist.data.preparation import SAMPLE_TEXT, CorpusWriter, encode_corpus
from mlm_dist.data.splitting import hold_out
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.texts.document_list import find_documents

TEXT_BYTES = 16 << 20
SAMPLE_VOCABULARY = 2000
RANDOM_NAME = "random tokens"
MATRIX_SIZE = {"cpu": 4096, "cuda": 8192}


def matrix_ceiling(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    """FLOP/s of a large square matrix product, the fastest of `rounds` products after a warmup."""
    size = MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        left @ right
        synchronize(device)

    product()
    return 2 * size**3 / min(seconds(product) for _ in range(rounds))


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object]) -> float:
    """The time that some work takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def random_corpus(folder: Path, config: Config) -> None:
    """Write a corpus of random tokens, for a machine without texts. Steps take as long as on a real corpus.

    Its small tokenizer is trained on the sample text of the package.
    """
    vocab_size = min(SAMPLE_VOCABULARY, config.model.entries)
    tokenizer = Tokenizer.train_bpe([SAMPLE_TEXT.read_text(encoding="utf-8")], vocab_size)
    folder.mkdir()
    tokenizer.save(folder / TOKENIZER)
    writer = CorpusWriter(folder, tokenizer, documents=1)
    count = 4 * config.train.batch_size * config.model.block_size
    tokens = np.random.default_rng(0).integers(0, tokenizer.end_id, count, dtype=np.uint32)
    tokens[-1] = tokenizer.end_id
    writer.add(EncodedBatch(Batch("train", [0], [""], is_last=True), tokens, np.array([count])))
    writer.finish([RANDOM_NAME]).write(folder)


def is_random(corpus: Corpus) -> bool:
    """Whether a corpus consists of random tokens."""
    return corpus.documents()[0].name == RANDOM_NAME


def texts_of(corpus: Corpus) -> list[str]:
    """Some megabytes of the text of a corpus, in pieces of about 1 MB. A random corpus has no text: the sample text."""
    if is_random(corpus):
        return [SAMPLE_TEXT.read_text(encoding="utf-8") * 14] * (TEXT_BYTES >> 20)
    tokens = np.asarray(corpus.train[: TEXT_BYTES // 3])
    pieces = np.array_split(tokens, max(1, len(tokens) * 4 >> 20))
    return [corpus.tokenizer.decode(piece[piece != corpus.tokenizer.end_id].tolist()) for piece in pieces]


def encoding_rates(corpus: Corpus, rounds: int) -> dict[str, float]:
    """Encoding rates, in bytes per second, of `prepare` on all cores and of plain tiktoken on one core.

    The two alternate, and the vocabulary is already loaded.
    """
    texts, tokenizer = texts_of(corpus), corpus.tokenizer
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, text in enumerate(texts):
            (folder / f"{i:03}.txt").write_text(text, encoding="utf-8")

        def prepare() -> None:
            with tempfile.TemporaryDirectory() as out:
                encode_corpus(hold_out(find_documents([folder]), 0.05), Path(out), tokenizer)

        def encode() -> None:
            for text in texts:
                tokenizer.encoding.encode_ordinary(text)

        prepare_times, tiktoken_times = zip(*((seconds(prepare), seconds(encode)) for _ in range(rounds)), strict=True)
    return {"prepare": size / statistics.median(prepare_times), "tiktoken": size / statistics.median(tiktoken_times)}
