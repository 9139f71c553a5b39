"""The results of evaluations, as text and as JSON."""

import json
import math

from mlm_dist.config import DataConfig
from mlm_dist.evaluation import Evaluation, mean_evaluation


def describe(results: list[Evaluation], data: DataConfig, kind: str, as_json: bool) -> str:
    """The metrics of one text; or of each corpus of a mixture, and their means by the weights of the corpora."""
    if len(results) == 1:
        return json.dumps(to_json(results[0])) if as_json else to_text(results[0], kind)
    together, parts = mean_evaluation(results, data.weights), list(zip(data.parts, results, strict=True))
    if as_json:
        each = {f"{name}/{part['path']}": value for part, result in parts for name, value in to_json(result).items()}
        return json.dumps(to_json(together) | each)
    blocks = [f"{part['path']}, weight {part['weight']:g}\n{to_text(result, kind)}" for part, result in parts]
    return "\n\n".join([*blocks, f"together, by weight\n{to_text(together, kind)}"])


def to_json(result: Evaluation) -> dict[str, float | None]:
    """The metrics by name. NaN and infinity become null, because JSON has neither."""
    metrics = result._asdict() | {"perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def to_text(result: Evaluation, kind: str) -> str:
    """The metrics, one per line. They are averages per `kind`: "masked token", or "token" of the text."""
    return "\n".join(
        [
            f"loss            {result.loss:.4f} nats per {kind}",
            f"perplexity      {result.perplexity:,.2f} over {kind}s",
            f"bits per byte   {result.bits_per_byte:.4f} over {kind}s",
            f"accuracy        {result.accuracy:.2%}",
            f"among the top 5 {result.top5_accuracy:.2%}",
            f"{kind + 's':<15} {result.tokens:,}",
        ]
    )
