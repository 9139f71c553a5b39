"""The interface that training, evaluation and inference use."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.model.soft_cap import soft_cap


def padded_documents(lengths: torch.Tensor, row_length: int) -> torch.Tensor:
    """The documents of padded rows, as `MaskedModel.encode` takes them: lengths (B,) -> (B, row_length).

    The padding after the tokens of a row is a document of its own, so they do not attend to it.
    """
    return (torch.arange(row_length, device=lengths.device) >= lengths[:, None]).long()


class MaskedModel(nn.Module, ABC):
    """A masked language model. docs/extending.md shows how to write another one.

    Shapes: B rows, T tokens per row, K positions per row, C channels (`embedding_dim`), V entries of the vocabulary.

    Attributes:
        config: the sizes of the model.
        output: the output layer, C -> V. The loss applies it to chunks of the hidden states.
    """

    config: ModelConfig
    output: nn.Linear

    @abstractmethod
    def encode(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the input of the output layer.

        Args:
            tokens: (B, T) ids, T at most `block_size`.
            positions: (B, K) positions to return. A model may compute all positions and gather these at the end.
            documents: (B, T), ascending from 0: the document of each token. Each document is computed as if it were
                alone in a row. None: each row is one document. A model that cannot do this raises `UserError`.

        Returns:
            (B, T, C), or (B, K, C) with `positions`.
        """

    def encode_for_loss(
        self, tokens: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the input of the output layer, (B, K, C), and return it with the weight of that layer, (V, C).

        Training calls this instead of `encode`, and must get the same states.
        """
        return self.encode(tokens, positions, documents), self.output.weight

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits: (B, T, V), or (B, K, V) with `positions`."""
        return self.logits(self.encode(tokens, positions))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits from the input of the output layer: (..., C) -> (..., V)."""
        return soft_cap(self.output(hidden), self.config.logit_softcap)

    def last_hidden_states(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the states whose mean is the embedding of a text; arguments and shapes as of `encode`."""
        return self.encode(tokens, positions, documents)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices between embeddings and output layer, which Muon optimizes. AdamW optimizes the rest."""
        return []

    @classmethod
    def count_parameters(cls, config: ModelConfig) -> int:
        """The number of parameters, counted without allocating them."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in cls(config).parameters())

    @classmethod
    def count_in_hidden_matrices(cls, config: ModelConfig) -> int:
        """The number of parameters in `hidden_matrices`, counted without allocating them."""
        with torch.device("meta"):
            return sum(matrix.numel() for matrix in cls(config).hidden_matrices())
