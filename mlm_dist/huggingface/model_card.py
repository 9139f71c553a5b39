"""The model card of an exported model: how to use it, and the metrics of its run."""

from pathlib import Path

from mlm_dist.config import Config, MaskingConfig
from mlm_dist.data.tokenizer import MASK
from mlm_dist.errors import UserError
from mlm_dist.inference.model import TrainedModel
from mlm_dist.run.history import EVALUATION
from mlm_dist.run.machine import read_machine
from mlm_dist.run.metrics import Event, read_events
from mlm_dist.version import __version__

CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
mask_token: "{mask}"
tags:
- mlm_dist
---

# {name}

A masked language model that was trained from scratch on `{corpus}` with mlm_dist {version}. It is in the format of
transformers' `MegatronBertForMaskedLM` and gives the logits of the encoder that was trained.

## How to use it

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")  # the path of the folder that this page lies in
for guess in fill("Call me {mask}."):
    print(f"{{guess['score']:.1%}} {{guess['token_str']!r}}")
```

- It sees {block_size} tokens at once. `tokenizer(texts, truncation=True)` cuts what is longer.
- The space before a hidden word is part of the word, as in all such vocabularies: the tokenizer takes one space before
  `{mask}` along with it.
- Fill masks in float32: the way to the output layer leads over a detour that costs bfloat16 two bits or more. Models
  that are fine-tuned for other tasks do not take it.
- The embedding of a text is the mean of `AutoModel`'s `last_hidden_state` over its tokens. mlm_dist's `embed` gives the
  same.

## The model

{model}

## The training

{training}
"""


def write_card(model: TrainedModel, name: str) -> str:
    """Write the model card, in Markdown. Every number in it comes from the model's run.

    Args:
        model: the exported model.
        name: its name in the card.

    Raises:
        UserError: the metrics of the run are damaged.
    """
    return CARD.format(
        mask=MASK,
        name=name,
        corpus=corpus_name(model.config),
        version=__version__,
        block_size=model.config.model.block_size,
        model=table(model_figures(model)),
        training=table(training_figures(model)),
    )


def model_figures(model: TrainedModel) -> dict[str, str]:
    """Table rows on the shape and size of the model."""
    shape, tokenizer = model.config.model, model.tokenizer
    return {
        "weights": f"{sum(weight.numel() for weight in model.encoder.parameters()):,}",
        "blocks": f"{shape.blocks}",
        "attention heads in each": f"{shape.heads}",
        "width": f"{shape.embedding_dim}",
        "tokens it sees": f"{shape.block_size}",
        "vocabulary": f"{tokenizer.vocab_size} tokens ({tokenizer.name}, with {MASK})",
        "entries of the output layer": f"{shape.entries}",
        "input and output embedding": "the same matrix" if shape.tie_embeddings else "two matrices",
    }


def training_figures(model: TrainedModel) -> dict[str, str]:
    """Table rows on the training: its corpus, length and settings, and the last evaluation of the run so far."""
    config, rows = model.config, model.config.train.batch_size
    masked = "always by the mask token" if config.masking.replacement == "mask" else config.masking.replacement
    return {
        "corpus": corpus_name(config),
        "steps": "unknown" if model.step is None else f"{model.step:,} of {config.train.max_iters:,}",
        "rows in a step": f"{rows:,}",
        "tokens seen": "unknown" if model.step is None else f"{model.step * rows * config.model.block_size:,}",
        "tokens that were hidden": f"{describe(config.masking)}, {masked}",
        "dropout": f"{config.model.dropout}",
        "optimizer": f"{config.optim.name}",
        "precision": str(read_machine(model.run_dir.machine).get("precision", "not recorded")),
        "seed": f"{config.seed}",
        **evaluation_figures(last_evaluation(model), config.masking),
    }


def describe(masking: MaskingConfig) -> str:
    """Describe which tokens were masked."""
    low, high = (f"{rate:.1%}" for rate in masking.endpoints)
    if masking.is_sampled:
        rate = f"a rate sampled per row, from {low} to {high}"
    else:
        rate = low if masking.mask_prob_end is None else f"{low} at the start to {high} at the end of the run"
    return rate if masking.unit == "token" else f"{rate}, whole {masking.unit}s"


def evaluation_figures(event: Event | None, masking: MaskingConfig) -> dict[str, str]:
    """Table rows on the results of an evaluation."""
    if event is None:
        return {"held-out loss": "not measured"}
    unit = "token, each hidden one standing for several" if masking.is_sampled else "hidden token"
    return {
        "held-out loss": f"{event['val_loss']:.4f} nats for each {unit}, at step {event['step']:,.0f}",
        "held-out accuracy": f"{event['val_accuracy']:.1%}",
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
    """The last part of the corpus's path. The rest depends on the machine."""
    return Path(config.data.path).absolute().name


def table(figures: dict[str, str]) -> str:
    """Format a Markdown table with two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in figures.items())])
