"""Fits the parameters of a trained `Encoder` to another vocabulary and to another block size."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

# The parameters of an `Encoder` with a row for each entry of the vocabulary.
VOCABULARY_PARAMETERS = ("token_embedding.weight", "output.weight", "output.bias")


def extend_vocabulary(
    parameters: Mapping[str, torch.Tensor], pieces: Mapping[int, Sequence[int]], entries: int
) -> dict[str, torch.Tensor]:
    """The parameters of an `Encoder`, for a vocabulary of another size.

    The embedding and the logit of a new token start as the means of those of the old tokens that its text consisted of.
    All other rows stay. Rows that the old vocabulary lacks and no token has, because `model.vocab_size` is larger than
    the tokenizer needs, are the mean of all old rows: with the mean logit, each has at most 1 / entries of the
    probability. A row of zeros could have a larger logit than any token.

    Args:
        parameters: the `state_dict` of the encoder, which is not changed.
        pieces: for the id of each new token, the ids of its pieces in the old vocabulary, as
            `Tokenizer.pieces_of_new` returns them.
        entries: the size of the new vocabulary, `model.vocab_size`: more than any id.

    Returns:
        A `state_dict`. It shares the tensors that do not change with `parameters`. Tied matrices stay tied.
    """
    extended = dict(parameters)
    for name in VOCABULARY_PARAMETERS:
        extended[name] = extend_rows(parameters[name], pieces, entries)
    if parameters["output.weight"].data_ptr() == parameters["token_embedding.weight"].data_ptr():
        extended["output.weight"] = extended["token_embedding.weight"]
    return extended


def extend_rows(old: torch.Tensor, pieces: Mapping[int, Sequence[int]], entries: int) -> torch.Tensor:
    """(old entries, ...) -> (entries, ...), as `extend_vocabulary`. Means are computed in fp64."""
    kept = old[:entries]
    mean = old.mean(0, keepdim=True, dtype=torch.float64).to(old.dtype)
    extended = torch.cat([kept, mean.expand(entries - len(kept), *old.shape[1:])])
    for token, ids in pieces.items():
        extended[token] = old[ids].mean(0, dtype=torch.float64)
    return extended


def fit_positions(embedding: torch.Tensor, block_size: int) -> torch.Tensor:
    """Fit position embeddings to another block size: (T, C) -> (block_size, C).

    A shorter block has the first positions. For a longer one, they are interpolated linearly, with the first and the
    last at the ends. docs/adaptation.md compares this with other rules.
    """
    if block_size <= len(embedding):
        return embedding[:block_size].clone()
    stretched = F.interpolate(embedding.T[None], size=block_size, mode="linear", align_corners=True)
    return stretched[0].T.contiguous()
