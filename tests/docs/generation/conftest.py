from pathlib import Path

import numpy as np
import pytest
import torch

from judge import Judge
from mlm_dist.data.corpus import Corpus
from ngrams import Ngrams
from passages import document_texts


@pytest.fixture(scope="session")
def judge(corpus: Corpus) -> Judge:
    """A tiny untrained judge, with a trained vocabulary."""
    torch.manual_seed(1)
    return Judge.untrained(document_texts(corpus, "train"), vocab_size=300, width=32, layers=1)


@pytest.fixture(scope="session")
def judge_folder(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "tiny"
    judge.save(folder)
    return folder


@pytest.fixture(scope="session")
def training_text(corpus: Corpus) -> Ngrams:
    """The n-grams of the sample text."""
    return Ngrams(np.asarray(corpus.train), corpus.tokenizer.vocab_size, corpus.tokenizer.end_id, 8)
