"""The encoder and its loss by definition, one row and one head at a time, from the parameters of an `Encoder`."""

import math
from collections.abc import Callable, Mapping

import torch

from mlm_dist.config import ModelConfig

Parameters = Mapping[str, torch.Tensor]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x**2 * (x > 0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
}


def plain_loss(
    parameters: Parameters,
    config: ModelConfig,
    inputs: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor,
    documents: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `MaskedLoss` computes."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(inputs)):
        of_row = torch.zeros(inputs.shape[1], dtype=torch.int64) if documents is None else documents[row]
        logits = plain_logits(parameters, config, inputs[row], of_row)
        for slot, position in enumerate(positions[row]):
            log_probs = logits[position] - logits[position].exp().sum().log()
            total = total - loss_weights[row, slot] * log_probs[targets[row, slot]]
    return total


def plain_logits(
    parameters: Parameters, config: ModelConfig, tokens: torch.Tensor, documents: torch.Tensor
) -> torch.Tensor:
    """Logits of a row, (T, V)."""
    columns = torch.tensor([i - documents.tolist().index(document) for i, document in enumerate(documents.tolist())])
    x = parameters["token_embedding.weight"][tokens]
    if config.positions == "learned":
        x = x + parameters["position_embedding.weight"][columns]
    for block in range(config.blocks):
        p = {name.removeprefix(f"blocks.{block}."): value for name, value in parameters.items()}
        y = layer_norm(x, p, "attention_norm")
        heads = [head(y, p, config, index, columns, documents) for index in range(config.heads)]
        x = x + linear(torch.cat(heads, 1), p, "attention.projection")
        y = linear(layer_norm(x, p, "feed_forward_norm"), p, "feed_forward.expand")
        if config.activation == "geglu":
            half = y.shape[1] // 2
            y = ACTIVATIONS["gelu"](y[:, :half]) * y[:, half:]
        else:
            y = ACTIVATIONS[config.activation](y)
        x = x + linear(y, p, "feed_forward.contract")
    logits = linear(layer_norm(x, parameters, "final_norm"), parameters, "output")
    cap = config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head(
    x: torch.Tensor, p: Parameters, config: ModelConfig, index: int, columns: torch.Tensor, documents: torch.Tensor
) -> torch.Tensor:
    """The output of an attention head, (T, C) -> (T, D)."""
    size = config.embedding_dim // config.heads
    rows = slice(index * size, (index + 1) * size)
    query, key, value = (x @ part[rows].T for part in p["attention.query_key_value.weight"].chunk(3))
    if config.qk_norm:
        query, key = (
            part / (part.square().mean(1, keepdim=True) + 1e-6).sqrt() * p[f"attention.{name}_norm.weight"]
            for name, part in (("query", query), ("key", key))
        )
    if config.positions == "rope":
        query, key = (
            torch.stack([turn(v, int(c)) for v, c in zip(part, columns, strict=True)]) for part in (query, key)
        )
    scores = query @ key.T / math.sqrt(size)
    scores = scores.masked_fill(documents[:, None] != documents[None], -math.inf)
    return torch.softmax(scores, 1) @ value


def turn(vector: torch.Tensor, position: int) -> torch.Tensor:
    """Rotate a query or key as complex numbers, whose real parts are the first half of the channels."""
    half = len(vector) // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(vector[:half], vector[half:]) * torch.exp(1j * position * frequencies)
    return torch.cat([turned.real, turned.imag])


def layer_norm(x: torch.Tensor, p: Parameters, name: str) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: torch.Tensor, p: Parameters, name: str) -> torch.Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
