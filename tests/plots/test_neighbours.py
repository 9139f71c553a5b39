from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from mlm_dist import load
from mlm_dist.config import Config, ModelConfig
from mlm_dist.data.corpus import Corpus
from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.model.encoder import Encoder
from mlm_dist.plots.neighbours import find_neighbours, lay_out_neighbours, size_of_neighbours
from mlm_dist.plots.style import new_figure, render
from mlm_dist.plots.tokens import label
from mlm_dist.run.run_dir import RunDir


def expected_neighbours(model: TrainedModel, pieces: list[int]) -> list[tuple[str, float]]:
    """All other tokens, most similar first, computed from the definition of the cosine."""
    assert isinstance(model.encoder, Encoder)
    embeddings = model.encoder.token_embedding.weight.detach()[: model.tokenizer.vocab_size]
    mean = sum((embeddings[piece] for piece in pieces), torch.zeros(16)) / len(pieces)
    others = set(range(len(embeddings))) - {*pieces, model.tokenizer.mask_id, model.tokenizer.end_id}
    cosines = {token: (embeddings[token] @ mean / embeddings[token].norm() / mean.norm()).item() for token in others}
    return [(label(model.tokenizer, token), cosines[token]) for token in sorted(cosines, key=lambda t: -cosines[t])]


@pytest.mark.parametrize("word", ["the", "ferryman", " the "])
def test_neighbours_are_the_tokens_with_the_highest_cosine_similarity(model: TrainedModel, word: str) -> None:
    pieces = model.tokenizer.encode(f" {word.strip()}").tolist()
    found = find_neighbours(model, word, 6)
    assert found.word == word.strip()
    assert found.tokens == [label(model.tokenizer, piece) for piece in pieces]
    expected = expected_neighbours(model, pieces)[:6]
    assert [token for token, _ in found.neighbours] == [token for token, _ in expected]
    assert [similarity for _, similarity in found.neighbours] == pytest.approx([s for _, s in expected], abs=1e-5)


def test_the_tested_words_have_one_token_and_several_tokens(model: TrainedModel) -> None:
    assert len(find_neighbours(model, "the").tokens) == 1
    assert len(find_neighbours(model, "ferryman").tokens) > 1


def test_the_word_and_special_tokens_are_never_neighbours(corpus: Corpus, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.acquire()
    config = Config(model=ModelConfig(vocab_size=310, block_size=16, embedding_dim=16, heads=2, blocks=1))
    run_dir.begin(config, corpus.tokenizer)
    torch.save(Encoder(config.model).state_dict(), run_dir.model)
    tokens = [token for token, _ in find_neighbours(load(run_dir.path, "cpu"), "the", 10_000).neighbours]
    assert len(tokens) == len(set(tokens)) == 300 - 2 - 1
    assert not {"[MASK]", "<|endoftext|>", "·the"} & set(tokens)


def test_an_empty_word_is_reported(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="a word is empty"):
        find_neighbours(model, " ")


@pytest.mark.parametrize("words", [["the"], ["the", "ferryman", "$a$", "<&>"]])
def test_each_word_has_a_panel_with_its_neighbours(model: TrainedModel, words: list[str]) -> None:
    found = [find_neighbours(model, word) for word in words]
    with new_figure(*size_of_neighbours(found)) as figure:
        lay_out_neighbours(figure, found)
        svg = ElementTree.fromstring(render(figure, "svg"))
    texts = ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    for word, _, neighbours in found:
        assert word in texts
        for token, similarity in neighbours:
            assert token in texts
            assert f"{similarity:.2f}" in texts
