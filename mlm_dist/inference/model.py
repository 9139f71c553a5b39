"""A trained model, taken from its run directory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.config import Config
from mlm_dist.config_reading import read_config
from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.inference.embedding import embed
from mlm_dist.inference.filling import Filling, fill
from mlm_dist.inference.generation import Generation, Watch, generate
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.request import Order, Request
from mlm_dist.inference.scoring import Score, score
from mlm_dist.model.encoder import Encoder, check_weights
from mlm_dist.run.checkpoint import (
    find_newest,
    list_checkpoints,
    load_checkpoint,
    load_tensors,
    read_record,
    step_of,
)
from mlm_dist.run.record import differences
from mlm_dist.run.run_dir import RunDir


class TrainedModel:
    """An encoder with its tokenizer, ready to be asked. `mlm_dist.load` gives one.

    Args:
        path: a run directory. Of a run that is done its `model.pth` is taken, of another its newest checkpoint.
        device: what to compute on.

    Attributes:
        config: of the run.
        run_dir: the run.
        step: how many steps the weights were trained for; None where the run directory does not say.
        tokenizer: of its texts.
        encoder: on `device`, in evaluation mode.

    Raises:
        UserError: there is no run there, or nothing trained in it yet.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.run_dir = run_dir = RunDir(path)
        if not run_dir.config.exists():
            raise UserError(f"{path} is no run directory: it has no {run_dir.config.name}")
        self.device = device
        self.config = read_config(run_dir.config)
        if self.config.model.vocab_size is None:
            raise UserError(f"{run_dir.config}: model.vocab_size has to be the number that the run was trained with")
        self.tokenizer = Tokenizer.load(run_dir.tokenizer)
        check_record(run_dir, self.config, self.tokenizer)
        weights, self.step = load_weights(run_dir, self.config)
        try:
            check_weights(weights, self.config.model)
        except ValueError as error:
            raise UserError(
                f"{run_dir.config} describes a model of another shape than the weights in {path}"
            ) from error
        self.encoder = Encoder(self.config.model)
        self.encoder.load_state_dict(weights)
        if not all(weight.isfinite().all() for weight in self.encoder.parameters()):
            raise UserError(f"the weights in {path} are no finite numbers: the run has gone wrong")
        self.encoder.to(device).eval()
        self._predictor = Predictor(self.encoder, self.tokenizer, device)

    def fill(self, text: str, top: int = 5) -> Filling:
        """Fill the masks of a text, each for itself and all together.

        Args:
            text: of any length, with one or more `[MASK]`, or `[MASK*n]` for a word of n tokens. The space before a
                mask belongs to what is hidden.
            top: how many candidates to give for each mask.

        Raises:
            UserError: the text has no mask.
        """
        return fill(self._predictor, text, top)

    def generate(
        self,
        text: str = "",
        *,
        length: int | None = None,
        samples: int = 1,
        order: Order = "random",
        steps: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        remask: float = 0.0,
        seed: int = 0,
        watch: Watch | None = None,
    ) -> list[Generation]:
        """Write text: from nothing, after a prompt, or in the gaps of a text.

        Args:
            text: what is fixed, of any length. `[GAP:n]` in it stands for n tokens to be written, and the space before
                it for a part of them; a text without gaps is continued, and a space at its end is written anew.
            length: tokens to be written after a text without gaps; None: as many as the model sees at once.
            samples: how often to write it. Up to rounding, a sample is the same whatever their number.
            order: `random` draws the places to be written and a token for each, as the model's own distribution asks.
                `confidence` draws a token for every hidden place and keeps those that the model finds likeliest.
            steps: forward passes in which the tokens that are seen together are written; None: one for each token, and
                as many are the most.
            temperature: by which logits are divided; 0 takes the likeliest token always.
            top_p: tokens are drawn of the fewest that have this much probability together.
            remask: fraction of the written tokens that each pass hides again, to be written anew.
            seed: the same seed gives the same text, on the same machine.
            watch: is called after each pass with the text so far, hidden tokens shaded. The samples are then written
                one after the other.

        Raises:
            UserError: a value is out of bounds, or the text has gaps that cannot be read.
        """
        request = Request(text, length, samples, order, steps, temperature, top_p, remask, seed)
        return generate(self._predictor, request, watch)

    def score(self, texts: Sequence[str], within_word: bool = False) -> list[Score]:
        """Measure the pseudo-log-likelihood of texts: each token hidden in turn, in nats.

        Args:
            texts: of any length.
            within_word: hide with a token also those that follow in its word, so that the pieces of a rare word do not
                give each other away.
        """
        return score(self._predictor, texts, within_word)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Turn texts of any length into vectors, (texts, embedding_dim): the mean of the last hidden states."""
        return embed(self._predictor, texts)


def check_record(run_dir: RunDir, config: Config, tokenizer: Tokenizer) -> None:
    """Compare config.yaml and the tokenizer of a run with the record in its newest checkpoint that has one.

    Weights fit another number of heads, or other tokens, as well; the answers would be wrong without a word.

    Raises:
        UserError: they differ.
    """
    records = (read_record(place) for place in list_checkpoints(run_dir.checkpoints))
    record = next(filter(None, records), None)
    shape = {f"model.{key}": value for key, value in dataclasses.asdict(config.model).items() if key != "dropout"}
    now = shape | {"corpus.tokenizer_sha256": tokenizer.fingerprint}
    if record and (changes := differences(record["fixed"], now)):
        raise UserError(
            f"{run_dir.config} or {run_dir.tokenizer} was changed after the training, which had {', '.join(changes)}: "
            f"restore it"
        )


def load_weights(run_dir: RunDir, config: Config) -> tuple[dict[str, Any], int | None]:
    """The final weights of a run, or, where it goes on beyond them, those of its newest checkpoint; and their step.

    Raises:
        UserError: there are neither, `model.pth` is damaged, or all checkpoints are.
    """
    goes_on = not run_dir.done.exists() and list_checkpoints(run_dir.checkpoints)
    if goes_on or not run_dir.model.exists():
        place = find_newest(run_dir.checkpoints)
        if place is None:
            raise UserError(f"{run_dir.path} holds neither {run_dir.model.name} nor a checkpoint yet")
        return load_checkpoint(place).get("model", {}), step_of(place)
    try:
        weights = load_tensors(run_dir.model)
    except OSError as error:
        raise UserError(f"{run_dir.model}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{run_dir.model} cannot be read as weights: it is damaged, or of another program") from error
    return weights, config.train.max_iters if run_dir.done.exists() else None
