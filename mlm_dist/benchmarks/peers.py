"""What a user would run instead, with the same shapes: the naive first version of this project, and transformers."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.config import Config, ModelConfig
from mlm_dist.model.encoder import Head

PeerName = Literal["naive", "transformers"]

IGNORED = -100


class NaiveBlock(nn.Module):
    """Attention heads, computed one after the other, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        heads = (Head(width, width // config.heads) for _ in range(config.heads))
        self.heads = nn.ModuleList(heads)
        self.projection = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        normalized = self.first_norm(x)
        x = x + self.projection(torch.cat([head(normalized) for head in self.heads], dim=-1))
        out: torch.Tensor = x + self.feed_forward(self.second_norm(x))
        return out


class NaiveEncoder(nn.Module):
    """A naive encoder: it computes logits at every position, although the loss ignores most of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.entries, config.embedding_dim)
        self.position_embedding = nn.Embedding(config.block_size, config.embedding_dim)
        self.blocks = nn.Sequential(*(NaiveBlock(config) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.entries)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss over the labels that are not ignored. Inputs and labels are (B, T)."""
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.blocks(self.token_embedding(inputs) + self.position_embedding(positions))
        logits = self.output(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


class TransformersEncoder(nn.Module):
    """`BertForMaskedLM` of the same size, called as `run_mlm_no_trainer.py` calls it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM  # noqa: PLC0415

        shape = BertConfig(
            vocab_size=config.entries,
            hidden_size=config.embedding_dim,
            num_hidden_layers=config.blocks,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.embedding_dim,
            max_position_embeddings=config.block_size,
        )
        self.model: Any = BertForMaskedLM(shape)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss over the labels that are not ignored. Inputs and labels are (B, T)."""
        loss: torch.Tensor = self.model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels).loss
        return loss


ENCODERS: dict[PeerName, type[nn.Module]] = {"naive": NaiveEncoder, "transformers": TransformersEncoder}


def mask_with_global_generator(tokens: torch.Tensor, config: Config, mask_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels as the peers make them: tokens masked independently, 80/10/10, by the global generator."""
    is_masked = torch.rand(tokens.shape, device=tokens.device) < config.masking.mean_rate
    labels = tokens.masked_fill(~is_masked, IGNORED)
    uniform = torch.rand(tokens.shape, device=tokens.device)
    inputs = tokens.masked_fill(is_masked & (uniform < 0.8), mask_id)
    random_tokens = torch.randint_like(tokens, config.model.entries)
    return torch.where(is_masked & (uniform >= 0.9), random_tokens, inputs), labels
