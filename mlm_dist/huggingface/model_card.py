"""The model card of an exported model: how to use it, and the metrics of its run."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.tokenizer import MASK
from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.phases import Phases, has_smaller_batches
from mlm_dist.run.averaged import describe_average
from mlm_dist.run.history import EVALUATION
from mlm_dist.run.machine import read_machine
from mlm_dist.run.metrics import Event, read_events
from mlm_dist.source import MODEL
from mlm_dist.version import __version__

CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline}
mask_token: "{mask}"
tags:
- mlm_dist{tags}
---

# {name}

A masked language model that was trained {start} on `{corpus}` with mlm_dist {version}. It is in the format of
transformers' `{architecture}`, which computes the same logits as the trained encoder.

## How to use it
{usage}
## The model

{model}

## The training

{training}
{note}"""

FILL_MASK = """
```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")  # the path of this folder
for guess in fill("Call me {mask}."):
    print(f"{{guess['score']:.1%}} {{guess['token_str']!r}}")
```

- The context window is {block_size} tokens. `tokenizer(texts, truncation=True)` truncates longer texts.
- As usual in byte-level BPE, the space before a word is part of the word. The tokenizer therefore includes one space
  before `{mask}` in the mask.
- Fill masks in float32. The layer before the output layer adds an offset, which costs bfloat16 at least two bits of
  precision. Models that are fine-tuned for other tasks do not use this layer.
- The embedding of a text is the mean of `AutoModel`'s `last_hidden_state` over its tokens. mlm_dist's `embed` returns
  the same vector, and reads longer texts block by block.
"""

Addition = Literal["onnx", "sentence_transformers"]
"""What an export can have in addition."""

EXAMPLES: dict[Addition, str] = {
    "sentence_transformers": """
### With sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["Call me Ishmael.", "Some years ago"])
print(vectors.shape)
```

`encode` truncates texts of more than {block_size} tokens.
""",
    "onnx": """
### With onnxruntime

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{name}/tokenizer.json")
tokenizer.enable_truncation({block_size})
tokenizer.enable_padding()
texts = tokenizer.encode_batch(["Call me {mask}.", "Some {mask} ago, never mind how long"])
inputs = {{
    "input_ids": np.array([text.ids for text in texts]),
    "attention_mask": np.array([text.attention_mask for text in texts]),
}}
(logits,) = onnxruntime.InferenceSession("{name}/model.onnx").run(["logits"], inputs)
print(logits.shape)  # texts, tokens of the longest one, size of the output layer
```

Rows have any number of tokens up to {block_size}, and are padded at their end.
""",
}


def write_card(model: TrainedModel, name: str, additions: Collection[Addition] = (), note: str = "") -> str:
    """Write the model card, in Markdown. Every number in it comes from the model's run.

    Args:
        model: the exported model.
        name: its name in the card.
        additions: of the export.
        note: a paragraph about a training for sentence vectors since its run; the model then fills no masks.

    Raises:
        UserError: the metrics of the run are damaged.
    """
    examples = [example for addition, example in EXAMPLES.items() if addition in additions]
    usage = "".join(examples if note else [FILL_MASK, *examples])
    return CARD.format(
        mask=MASK,
        name=name,
        tags="\n- sentence-transformers" if "sentence_transformers" in additions else "",
        pipeline="sentence-similarity" if note else "fill-mask",
        usage=usage.format(mask=MASK, name=name, block_size=model.config.model.block_size),
        corpus=corpus_name(model.config),
        start=describe_start(model.config.init_from),
        version=__version__,
        architecture="EsmForMaskedLM" if model.config.model.positions == "rope" else "MegatronBertForMaskedLM",
        model=table(model_details(model)),
        training=table(training_details(model)),
        note=note and f"\n{note}\n",
    )


def describe_start(init_from: str | None) -> str:
    """What the training started from, without the folder, which depends on the machine."""
    return f"from the parameters of `{Path(init_from.removesuffix(MODEL)).name}`" if init_from else "from scratch"


def model_details(model: TrainedModel) -> dict[str, str]:
    """Table rows on the shape and size of the model."""
    shape, tokenizer = model.config.model, model.tokenizer
    return {
        "parameters": f"{sum(parameter.numel() for parameter in model.encoder.parameters()):,}",
        "blocks": f"{shape.blocks}",
        "attention heads per block": f"{shape.heads}",
        "embedding dimension": f"{shape.embedding_dim}",
        "context window": f"{shape.block_size}",
        "vocabulary": f"{tokenizer.vocab_size} tokens ({tokenizer.name}, with {MASK})",
        "size of the output layer": f"{shape.entries}",
        "input and output embeddings": "tied" if shape.tie_embeddings else "separate",
    }


def training_details(model: TrainedModel) -> dict[str, str]:
    """Table rows on the training: its corpus, length and settings, and the last evaluation of the run so far."""
    config = model.config
    tokens = None if model.step is None else Phases(config).rows_before(model.step) * config.model.block_size
    masked = "always replaced by the mask token" if config.masking.replacement == "mask" else config.masking.replacement
    average = describe_average(model.run_dir.averaged)
    return {
        "corpus": corpus_name(config),
        **({"parameters": average} if average else {}),
        "steps": "unknown" if model.step is None else f"{model.step:,} of {config.train.max_iters:,}",
        "rows per step": f"{config.train.batch_size:,}{', fewer at first' if has_smaller_batches(config) else ''}",
        "tokens seen": "unknown" if tokens is None else f"{tokens:,}",
        "masked tokens": f"{describe(config.masking)}, {masked}",
        "dropout": f"{config.model.dropout}",
        "optimizer": f"{config.optim.name}",
        "precision": str(read_machine(model.run_dir.machine).get("precision", "not recorded")),
        "seed": f"{config.seed}",
        **evaluation_results(last_evaluation(model), config.masking),
    }


def describe(masking: MaskingConfig) -> str:
    """Describe which tokens were masked."""
    low, high = (f"{rate:.1%}" for rate in masking.endpoints)
    if masking.is_sampled:
        rate = f"a rate sampled per row, from {low} to {high}"
    elif masking.mask_prob_end is None:
        rate = low
    elif masking.mask_prob_change_fraction < 1:
        rate = f"{low}, changing to {high} over the last {masking.mask_prob_change_fraction:.0%} of the run"
    else:
        rate = f"{low} at the start to {high} at the end of the run"
    return rate if masking.unit == "token" else f"{rate}, whole {masking.unit}s"


def evaluation_results(event: Event | None, masking: MaskingConfig) -> dict[str, str]:
    """Table rows on the results of an evaluation."""
    if event is None:
        return {"validation loss": "not measured"}
    unit = "token, each masked one weighted by 1 / rate" if masking.is_sampled else "masked token"
    return {
        "validation loss": f"{event['val_loss']:.4f} nats per {unit}, at step {event['step']:,.0f}",
        "validation accuracy": f"{event['val_accuracy']:.1%}",
    }


def last_evaluation(model: TrainedModel) -> Event | None:
    """The last evaluation of the run up to the step of the parameters; None if there was none.

    Raises:
        UserError: the metrics file is damaged.
    """
    if model.step is None or not model.run_dir.metrics.exists():
        return None
    try:
        events = [event for event in read_events(model.run_dir.metrics) if event["step"] <= model.step]
        evaluated = [event for event in events if event.get("val_loss") is not None]
        evaluations = [{key: float(event[key]) for key in EVALUATION} for event in evaluated]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{model.run_dir.metrics} is damaged: {error}") from error
    return evaluations[-1] if evaluations else None


def corpus_name(config: Config) -> str:
    """The last part of the path of each corpus. The rest depends on the machine."""
    return ", ".join(Path(part["path"]).absolute().name for part in config.data.parts)


def table(rows: dict[str, str]) -> str:
    """Format a Markdown table with two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
