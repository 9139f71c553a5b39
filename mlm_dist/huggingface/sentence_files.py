"""The files with which sentence-transformers embeds texts as `embed` does.

Their keys are those of its earlier versions, which version 6 reads too, although it writes others.
"""

from typing import Any

from mlm_dist.config import ModelConfig

POOLING = "1_Pooling"


def describe_sentence_model(model: ModelConfig) -> dict[str, Any]:
    """The content of each file: the model, whose texts are truncated to its block size, then the mean of its states."""
    modules = {"Transformer": "", "Pooling": POOLING}
    return {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (name, path) in enumerate(modules.items())
        ],
        # Without the pooling layer, which this model lacks: transformers would initialize one, with a warning.
        "sentence_bert_config.json": {
            "max_seq_length": model.block_size,
            "do_lower_case": False,
            "model_args": {"add_pooling_layer": False},
        },
        f"{POOLING}/config.json": {
            "word_embedding_dimension": model.embedding_dim,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
        },
    }
