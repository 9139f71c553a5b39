"""The encoder: embeddings, blocks of attention and feed-forward, a final LayerNorm, logits.

Pre-LayerNorm blocks with learned position embeddings and ReLU. Unlike BERT, there is no transform between the final
LayerNorm and the output layer: the recipe learns faster without one. The export to transformers'
`MegatronBertForMaskedLM` uses an identity instead.

Shapes: B rows, T tokens per row, K positions per row, C channels (`embedding_dim`), H heads, V entries.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.errors import UserError
from mlm_dist.model.masked_model import MaskedModel

# Negligible compared with any real variance, because the exported model has an extra LayerNorm that is the identity
# only then.
LAYER_NORM_EPS = 1e-12

INITIAL_STD = 0.02

# On a CPU, the backward pass of torch's fused attention is slower than plain products for rows up to this length.
LONGEST_PLAIN = 256


class Head(nn.Module):
    """One attention head by definition: softmax(q k^T / sqrt(size)) v.

    `MultiHeadAttention.head(i)` returns one that shares its parameters. Training computes all heads at once instead.

    Attributes:
        query, key, value: linear layers without bias, C -> head size.
    """

    def __init__(self, embedding_dim: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(embedding_dim, head_size, bias=False)
        self.key = nn.Linear(embedding_dim, head_size, bias=False)
        self.value = nn.Linear(embedding_dim, head_size, bias=False)

    def attention_weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention of each position to all positions: (B, T, C) -> (B, T, T). Rows sum to 1."""
        query, key = self.query(x), self.key(x)
        attention: torch.Tensor = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        return attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, head size)."""
        out: torch.Tensor = self.attention_weights(x) @ self.value(x)
        return out


class MultiHeadAttention(nn.Module):
    """All heads at once, and the projection of their outputs."""

    def __init__(self, embedding_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(embedding_dim, 3 * embedding_dim, bias=False)
        self.projection = nn.Linear(embedding_dim, embedding_dim)
        self.dropout = dropout

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with `positions` (B, K), only these are queries -> (B, K, C).

        `mask`, (B, T, T), is as `same_document` returns it.
        """
        width = x.shape[-1]
        if positions is None:
            query, key, value = self.split_heads(self.query_key_value(x))  # (B, H, T, C / H) each
        else:
            weight = self.query_key_value.weight
            (query,) = self.split_heads(F.linear(gather_positions(x, positions), weight[:width]))  # (B, H, K, C / H)
            key, value = self.split_heads(F.linear(x, weight[width:]))
            mask = None if mask is None else gather_positions(mask, positions)
        mask = None if mask is None else mask[:, None]  # (B, 1, T or K, T)
        dropout = self.dropout if self.training else 0.0
        if uses_plain_products(x):
            scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # (B, H, T or K, T)
            attention = (scores if mask is None else scores.add_(mask)).softmax(-1)
            out = F.dropout(attention, dropout) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        joined: torch.Tensor = self.projection(out.transpose(1, 2).flatten(2))
        return joined

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, n C) -> (n, B, H, T, C / H)."""
        batch, length, _ = x.shape
        size = self.projection.in_features // self.heads
        return x.view(batch, length, -1, self.heads, size).permute(2, 0, 3, 1, 4)

    def head(self, index: int) -> Head:
        """The head with this index. It shares the parameters of this module."""
        width = self.projection.in_features
        size = width // self.heads
        # On "meta" the layers take no memory; their parameters are then replaced by views of those of this module.
        with torch.device("meta"):
            head = Head(width, size)
        parameters = self.query_key_value.weight.view(3, self.heads, size, width)[:, index]
        for part, layer in enumerate((head.query, head.key, head.value)):
            del layer.weight
            layer.weight = parameters[part]  # a view of a Parameter, not a Parameter itself
        return head


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, four times as wide inside."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embedding_dim, 4 * embedding_dim)
        self.contract = nn.Linear(4 * embedding_dim, embedding_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        rows = x.flatten(0, -2)  # the output of a layer on more dimensions is a view, and in place that costs copies
        out: torch.Tensor = self.contract(self.expand(rows).relu_())  # in place: the largest activation of a block
        return out.view(x.shape)


class Block(nn.Module):
    """Attention, then feed-forward, each after a LayerNorm and inside a residual connection."""

    def __init__(self, embedding_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embedding_dim, eps=LAYER_NORM_EPS)
        self.attention = MultiHeadAttention(embedding_dim, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(embedding_dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with `positions` (B, K), only these are computed -> (B, K, C)."""
        attended = self.attention(self.attention_norm(x), positions, mask)
        x = (x if positions is None else gather_positions(x, positions)) + self.dropout(attended)
        out: torch.Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out


class Encoder(MaskedModel):
    """The default model: embeddings, blocks, a final LayerNorm and an output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_dim
        self.token_embedding = nn.Embedding(config.entries, width)
        self.position_embedding = nn.Embedding(config.block_size, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.output = nn.Linear(width, config.entries)
        if config.tie_embeddings:
            self.output.weight = self.token_embedding.weight
        self.apply(initialize)

    def encode(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the input of the output layer: (B, T, C), or (B, K, C) with `positions`.

        With `positions`, only these pass through the query, projection and feed-forward of the last block.
        """
        normalised: torch.Tensor = self.final_norm(self.run_blocks(tokens, positions, documents))
        return normalised

    def last_hidden_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the `last_hidden_state` of the exported model in transformers: (B, T, C).

        This is the normalised output of the last block, without the scale and shift of the final LayerNorm, which the
        export moves into the head (see huggingface/megatron_bert.py).
        """
        return self.hidden_states(tokens, len(self.blocks))

    def hidden_states(
        self,
        tokens: torch.Tensor,
        layer: int,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the normalised output of the first `layer` blocks, at least 1: (B, T, C), or (B, K, C)."""
        out = self.run_blocks(tokens, positions, documents, layer)
        return F.layer_norm(out, self.final_norm.normalized_shape, eps=LAYER_NORM_EPS)

    def run_blocks(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        layer: int | None = None,
    ) -> torch.Tensor:
        """Compute the output of the last block, or of the first `layer`: (B, T, C), or (B, K, C) with `positions`."""
        batch, length = tokens.shape
        # Not by calling the layer: on a CPU, its backward pass takes five times as long.
        embedded = self.token_embedding.weight.index_select(0, tokens.flatten()).view(batch, length, -1)
        if documents is None:
            mask, x = None, embedded + self.position_embedding.weight[:length]
        else:
            mask = same_document(documents)
            columns = torch.arange(length, device=tokens.device) - torch.searchsorted(documents, documents)
            x = embedded + self.position_embedding.weight.index_select(0, columns.flatten()).view_as(embedded)
        x = self.dropout(x)
        *earlier, last = list(self.blocks)[:layer]
        for block in earlier:
            x = block(x, mask=mask)
        out: torch.Tensor = last(x, positions, mask)
        return out

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the blocks."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    @classmethod
    def count_parameters(cls, config: ModelConfig) -> int:
        """The number of parameters, by formula: a config may ask for more blocks than can be built."""
        width, entries = config.embedding_dim, config.entries
        matrices = 1 if config.tie_embeddings else 2
        outside_the_blocks = (matrices * entries + config.block_size + 2) * width + entries
        return outside_the_blocks + cls.count_in_hidden_matrices(config) + config.blocks * 10 * width

    @classmethod
    def count_in_hidden_matrices(cls, config: ModelConfig) -> int:
        """The number of parameters in the matrices inside the blocks."""
        return config.blocks * 12 * config.embedding_dim**2


def as_encoder(model: MaskedModel, purpose: str) -> Encoder:
    """The model as an `Encoder`, for code that needs its internals.

    Args:
        model: the model.
        purpose: what needs the `Encoder`, for the message.

    Raises:
        UserError: it is not an `Encoder`.
    """
    if not isinstance(model, Encoder):
        raise UserError(f"{purpose} needs model.name encoder, but this run has {model.config.name}")
    return model


def same_document(documents: torch.Tensor) -> torch.Tensor:
    """Which positions are of the same document, (B, T) -> (B, T, T): as booleans, or as 0 and -infinity to be added."""
    same = documents[:, :, None] == documents[:, None, :]
    if not uses_plain_products(documents):
        return same
    return torch.zeros(same.shape, device=same.device).masked_fill_(~same, -torch.inf)


def uses_plain_products(rows: torch.Tensor) -> bool:
    """Whether attention over rows (B, T, ...) is computed by plain products."""
    return rows.device.type == "cpu" and rows.shape[1] <= LONGEST_PLAIN


def gather_positions(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Gather positions of rows: (B, T, C) and (B, K) -> (B, K, C)."""
    batch, length, width = x.shape
    starts = torch.arange(0, batch * length, length, device=x.device)[:, None]
    indices = (starts + positions).flatten()
    return x.flatten(0, 1).index_select(0, indices).view(batch, -1, width)


def initialize(module: nn.Module) -> None:
    """Sample matrices from N(0, 0.02) and set biases to zero, like GPT-2 (Radford et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
