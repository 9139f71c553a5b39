"""The encoder: embeddings, blocks of attention and feed-forward, a final LayerNorm, logits.

Pre-LayerNorm blocks with learned position embeddings and ReLU, unless the config has others. Unlike BERT, there is no
transform between the final LayerNorm and the output layer: the recipe learns faster without one. The export to
transformers' `MegatronBertForMaskedLM` uses an identity instead.

Shapes: B rows, T tokens per row, K positions per row, C channels (`embedding_dim`), H heads of D channels, V entries.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlm_dist.config import ModelConfig
from mlm_dist.errors import UserError
from mlm_dist.model import low_precision
from mlm_dist.model.activation import ACTIVATIONS, inner_widths
from mlm_dist.model.add_norm import add_norm
from mlm_dist.model.embedding import Embedding
from mlm_dist.model.initial import initialize
from mlm_dist.model.masked_model import MaskedModel
from mlm_dist.model.relu_layers import ReluLayers
from mlm_dist.model.rotary import Rotation, rotate, rotation, select
from mlm_dist.model.selection import select_rows
from mlm_dist.model.short_attention import ShortAttention, uses_short_attention

# Negligible compared with any real variance, because the exported model has an extra LayerNorm that is the identity
# only then.
LAYER_NORM_EPS = 1e-12

RMS_NORM_EPS = 1e-6

# On a CPU, the backward pass of torch's fused attention is slower than plain products for rows up to this length.
LONGEST_PLAIN = 256


class HeadNorm(nn.Module):
    """RMSNorm of the queries or keys of a head, (..., D), with a scale that all heads of a block share."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize in fp32, and return the dtype of `x`, which matrix products need."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), RMS_NORM_EPS)


class Head(nn.Module):
    """One attention head by definition: softmax(q k^T / sqrt(size)) v.

    `MultiHeadAttention.head(i)` returns one that shares its parameters. Training computes all heads at once instead.

    Attributes:
        query, key, value: linear layers without bias, C -> head size.
        query_norm, key_norm: the identity, or norms.
        is_rotary: whether queries and keys are rotated by their positions.
    """

    def __init__(self, embedding_dim: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(embedding_dim, head_size, bias=False)
        self.key = nn.Linear(embedding_dim, head_size, bias=False)
        self.value = nn.Linear(embedding_dim, head_size, bias=False)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        self.is_rotary = False

    def attention_weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention of each position to all positions: (B, T, C) -> (B, T, T). Rows sum to 1."""
        query, key = self.query_norm(self.query(x)), self.key_norm(self.key(x))
        if self.is_rotary:
            row_rotation = rotation(x.shape[1], query.shape[-1], x)
            query, key = rotate(query, row_rotation), rotate(key, row_rotation)
        attention: torch.Tensor = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        return attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, head size)."""
        out: torch.Tensor = self.attention_weights(x) @ self.value(x)
        return out


class MultiHeadAttention(nn.Module):
    """All heads at once, and the projection of their outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.heads = config.heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = HeadNorm(config.head_size) if config.qk_norm else nn.Identity()
        self.key_norm = HeadNorm(config.head_size) if config.qk_norm else nn.Identity()
        self.is_rotary = config.positions == "rope"
        self.is_plain = not (config.qk_norm or self.is_rotary)
        self.projection = nn.Linear(width, width)
        self.dropout = config.dropout

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        row_rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with `positions` (B, K), only these are queries -> (B, K, C).

        `mask`, (B, T, T), is as `same_document` returns it; `row_rotation`, that of all positions, if heads are rotary.
        """
        width = x.shape[-1]
        dropout = self.dropout if self.training else 0.0
        if positions is None:
            queries, packed = None, self.query_key_value(x)  # (B, T, 3 C)
        else:
            of_query, of_rest = torch.split(self.query_key_value.weight, [width, 2 * width])
            gathered, x = gather_and_keep(x, positions)
            queries, packed = F.linear(gathered, of_query), F.linear(x, of_rest)
            mask = None if mask is None else gather_positions(mask, positions)
        if self.is_plain and mask is None and not dropout and uses_short_attention(packed, width // self.heads):
            out: torch.Tensor = ShortAttention.apply(packed, queries, self.heads)  # type: ignore[no-untyped-call]
            return self.projection(out)  # type: ignore[no-any-return]
        query, key, value = (
            part for given in (queries, packed) if given is not None for part in self.split_heads(given)
        )
        query, key = self.query_norm(query), self.key_norm(key)  # (B, H, T or K, D), (B, H, T, D)
        if row_rotation is not None:
            query = rotate(query, row_rotation if positions is None else select(row_rotation, positions))
            key = rotate(key, row_rotation)
        mask = None if mask is None else mask[:, None]  # (B, 1, T or K, T)
        if uses_plain_products(x):
            scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # (B, H, T or K, T)
            attention = (scores if mask is None else scores.add_(mask)).softmax(-1)
            out = F.dropout(attention, dropout) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        joined: torch.Tensor = self.projection(out.transpose(1, 2).flatten(2))
        return joined

    def split_heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, T, n C) -> n tensors (B, H, T, D)."""
        batch, length, _ = x.shape
        size = self.projection.in_features // self.heads
        parts = x.view(batch, length, -1, self.heads, size).unbind(2)  # so their gradients are stacked in this layout
        return [part.transpose(1, 2) for part in parts]

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
        head.query_norm, head.key_norm, head.is_rotary = self.query_norm, self.key_norm, self.is_rotary
        return head


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = inner_widths(config)
        self.expand = nn.Linear(config.embedding_dim, widths.expanded)
        self.activation = ACTIVATIONS[config.activation]
        self.contract = nn.Linear(widths.contracted, config.embedding_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        rows = x.flatten(0, -2)  # the output of a layer on more dimensions is a view, and in place that costs copies
        if self.activation is torch.relu_ and low_precision.runs_kernel("feed-forward", rows):
            parameters = self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias
            out: torch.Tensor = ReluLayers.apply(rows, *parameters)  # type: ignore[no-untyped-call]
        else:
            out = self.contract(self.activation(self.expand(rows)))
        return out.view(x.shape)


class Block(nn.Module):
    """Attention, then feed-forward, each after a LayerNorm and inside a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=LAYER_NORM_EPS)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.embedding_dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        row_rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with `positions` (B, K), only these are computed -> (B, K, C)."""
        x, normed = add_norm(x, None, self.attention_norm)
        attended = self.dropout(self.attention(normed, positions, mask, row_rotation))
        x = x if positions is None else gather_positions(x, positions)
        x, normed = add_norm(x, attended, self.feed_forward_norm)
        out: torch.Tensor = x + self.dropout(self.feed_forward(normed))
        return out


class Encoder(MaskedModel):
    """The default model: embeddings, blocks, a final LayerNorm and an output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_dim
        self.token_embedding = nn.Embedding(config.entries, width)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.block_size, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.output = nn.Linear(width, config.entries)
        if config.tie_embeddings:
            self.output.weight = self.token_embedding.weight
        initialize(self, config)

    def __init_subclass__(cls, **arguments: object) -> None:
        """Train a subclass by its own `encode` or `embed`, which the shortcuts of `encode_for_loss` do not call."""
        super().__init_subclass__(**arguments)
        is_overridden = any(
            getattr(cls, name) is not getattr(Encoder, name) for name in ("encode", "embed", "add_positions")
        )
        if is_overridden and cls.encode_for_loss is Encoder.encode_for_loss:
            cls.encode_for_loss = MaskedModel.encode_for_loss  # type: ignore[method-assign]

    def encode(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the input of the output layer: (B, T, C), or (B, K, C) with `positions`.

        With `positions`, only these pass through the query, projection and feed-forward of the last block.
        """
        return low_precision.call(self.final_norm, self.run_blocks(self.embed(tokens, documents), positions, documents))

    def encode_for_loss(
        self, tokens: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the input of the output layer, (B, K, C), and return it with the weight of that layer, (V, C)."""
        weight = self.output.weight
        if not self.config.tie_embeddings:
            return super().encode_for_loss(tokens, positions, documents)
        if self.config.positions == "learned" and documents is None and low_precision.runs_kernel("embedding", weight):
            rows = self.position_embedding.weight[: tokens.shape[1]]
            x, weight = Embedding.apply(weight, tokens, rows)  # type: ignore[no-untyped-call]
        else:
            embedded, weight = select_rows(weight, tokens.flatten())
            x = self.add_positions(embedded.view(*tokens.shape, -1), documents)
        states = self.run_blocks(x, positions, documents)
        return low_precision.call(self.final_norm, states), weight

    def last_hidden_states(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the `last_hidden_state` of the exported model in transformers: (B, T, C), or (B, K, C).

        This is the normalized output of the last block, without the scale and shift of the final LayerNorm, which the
        export moves into the head (see huggingface/megatron_bert.py).
        """
        states = self.run_blocks(self.embed(tokens, documents), positions, documents)
        return F.layer_norm(states, self.final_norm.normalized_shape, eps=LAYER_NORM_EPS)

    def run_blocks(
        self, x: torch.Tensor, positions: torch.Tensor | None = None, documents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the output of the last block from embeddings (B, T, C): (B, T, C), or (B, K, C) with `positions`."""
        x = self.dropout(x)
        mask = None if documents is None else same_document(documents)
        row_rotation = rotation(x.shape[1], self.config.head_size, x) if self.config.positions == "rope" else None
        x = x.to(low_precision.dtype_of_blocks(x))
        *earlier, last = self.blocks
        for block in earlier:
            x = low_precision.call(block, x, None, mask, row_rotation)
        return low_precision.call(last, x, positions, mask, row_rotation)

    def embed(self, tokens: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of tokens, (B, T) -> (B, T, C); with learned positions, plus those of their positions."""
        # Not by calling the layer: on a CPU, its backward pass takes five times as long.
        embedded = self.token_embedding.weight.index_select(0, tokens.flatten())
        return self.add_positions(embedded.view(*tokens.shape, -1), documents)

    def add_positions(self, embedded: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
        """With learned positions, add their embeddings: (B, T, C) -> (B, T, C)."""
        length = embedded.shape[1]
        if self.config.positions == "rope":
            return embedded
        if documents is None:
            return embedded + self.position_embedding.weight[:length]
        columns = torch.arange(length, device=documents.device) - torch.searchsorted(documents, documents)
        return embedded + self.position_embedding.weight.index_select(0, columns.flatten()).view_as(embedded)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the blocks."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    @classmethod
    def count_parameters(cls, config: ModelConfig) -> int:
        """The number of parameters, by formula: a config may ask for more blocks than can be built."""
        width, entries = config.embedding_dim, config.entries
        rows = (1 if config.tie_embeddings else 2) * entries + (
            config.block_size if config.positions == "learned" else 0
        )
        outside_the_blocks = (rows + 2) * width + entries
        vectors = 6 * width + inner_widths(config).expanded + (2 * config.head_size if config.qk_norm else 0)
        return outside_the_blocks + cls.count_in_hidden_matrices(config) + config.blocks * vectors

    @classmethod
    def count_in_hidden_matrices(cls, config: ModelConfig) -> int:
        """The number of parameters in the matrices inside the blocks."""
        width = config.embedding_dim
        return config.blocks * width * (4 * width + sum(inner_widths(config)))


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
    return x.flatten(0, 1).index_select(0, row_indices(x, positions)).view(len(x), -1, x.shape[-1])


def gather_and_keep(x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather positions of rows, and return the rows for their other use, as `select_rows` does."""
    gathered, rows = select_rows(x.flatten(0, 1), row_indices(x, positions))
    return gathered.view(len(x), -1, x.shape[-1]), rows.view(x.shape)


def row_indices(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The indices of positions (B, K) in the flattened rows of (B, T, C): (B * K,)."""
    batch, length = x.shape[:2]
    starts = torch.arange(0, batch * length, length, device=x.device)[:, None]
    return (starts + positions).flatten()
