"""The record of a run: the values that its parameters and validation metrics depend on. Every checkpoint has it.

A resumed run is compared with the record key by key. `fixed` values must not change, since the result would be a
different run. `adjustable` values may change, with a warning.
"""

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mlm_dist.config import Config
from mlm_dist.config_reading import Setting, current_spelling
from mlm_dist.data.corpus import Corpus
from mlm_dist.texts.finding import SPLITS

Values = Mapping[str, Any]

ORIGIN_SHA256 = "init_from.sha256"

# The keys of digests, with their names in messages.
DIGESTS = {
    "corpus.train_sha256": "the training text (SHA-256)",
    "corpus.val_sha256": "the validation text (SHA-256)",
    "corpus.tokenizer_sha256": "the tokenizer (SHA-256)",
    ORIGIN_SHA256: "the parameters of init_from (SHA-256)",
}
# The values of runs from before there were these keys.
EARLIER = {
    "data.shift_rows": False,
    "data.documents": "joined",
    "init_from": None,
    "branch": False,
    "optim.ema": None,
    "model.activation": "relu",
    "model.qk_norm": False,
    "model.positions": "learned",
    "model.logit_softcap": None,
    "masking.mask_prob_change_fraction": 1.0,
    "train.phases": [],
    "train.loss_frequency_exponent": 0.0,
}
FIXED = ("name", "ema")  # keys of optim that a run must not change
SHOWN_DIGITS = 12  # of a digest, in a message
SHORTENED = reprlib.Repr()
SHORTENED.maxstring = 300  # a path should be whole


def describe_run(config: Config, corpora: Sequence[Corpus], dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The record of a run, as plain JSON values.

    Args:
        config: the run's config, with `model.vocab_size` set.
        corpora: the run's corpora. The record of a single one has no lists, as in earlier versions.
        dtype: the dtype of matrix products.
    """
    train, val = ([corpus.manifest.sha256[split] for corpus in corpora] for split in SPLITS)
    is_mixture = len(corpora) > 1
    return {
        "fixed": {
            **fixed_values(config),
            "corpus.train_sha256": train if is_mixture else train[0],
            "corpus.val_sha256": val if is_mixture else val[0],
            "corpus.tokenizer_sha256": corpora[0].tokenizer.fingerprint,
        },
        "adjustable": {
            **{f"optim.{key}": value for key, value in dataclasses.asdict(config.optim).items() if key not in FIXED},
            "train.max_iters": config.train.max_iters,
            "precision": str(dtype).removeprefix("torch."),
        },
    }


def fixed_values(config: Config) -> dict[str, Any]:
    """The config keys that a run must not change, with their values. A `model.vocab_size` of null fits every run."""
    values = {
        "seed": config.seed,
        "init_from": config.init_from,
        "branch": config.branch,
        "data.documents": config.data.documents,
        "data.weights": config.data.weights,
        "data.shift_rows": config.data.shift_rows,
        "train.batch_size": config.train.batch_size,
        "train.phases": config.train.phases,
        "train.loss_frequency_exponent": config.train.loss_frequency_exponent,
        "train.eval_rows": config.train.eval_rows,
        **{f"optim.{key}": getattr(config.optim, key) for key in FIXED},
        **{f"model.{key}": value for key, value in dataclasses.asdict(config.model).items()},
        **{f"masking.{key}": value for key, value in dataclasses.asdict(config.masking).items()},
    }
    if config.model.vocab_size is None:
        del values["model.vocab_size"]
    return values


def differences(values: Values, others: Values) -> str:
    """The keys whose values differ, as "seed 1, not 2; optim.lr 0.1, not 0.2"; empty if there are none.

    `values` may be of an earlier version: it has the value of `EARLIER` then for a key that it lacks. Another key that
    only one side has does not count.
    """
    given = {new.key: new.value for key, value in values.items() for new in current_spelling(Setting(key, value, ""))}
    values = EARLIER | given
    return "; ".join(
        f"{DIGESTS.get(key, key)} {show(key, values[key])}, not {show(key, other)}"
        for key, other in others.items()
        if key in values and values[key] != other
    )


def show(key: str, value: object) -> str:
    """A value as it appears in messages."""
    return str(value)[:SHOWN_DIGITS] if key in DIGESTS and isinstance(value, str) else SHORTENED.repr(value)
