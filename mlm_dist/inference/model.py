"""A trained model, loaded from its run directory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mlm_dist.errors import UserError, refuse_single
from mlm_dist.inference.embedding import Pooling, check_layer, embed
from mlm_dist.inference.filling import Filling, fill
from mlm_dist.inference.generation import Generation, Watch, generate
from mlm_dist.inference.predictor import Predictor
from mlm_dist.inference.probing import Probe, compare, score_pairs
from mlm_dist.inference.request import Order, Request
from mlm_dist.inference.scoring import Score, score
from mlm_dist.model.registry import build_model
from mlm_dist.run.run_dir import RunDir
from mlm_dist.run.trained import read_trained
from mlm_dist.source import Step
from mlm_dist.texts.minimal_pairs import MinimalPair


class TrainedModel:
    """A trained encoder with its tokenizer, as `mlm_dist.load` returns it.

    Args:
        path: a run directory.
        device: the device to compute on.
        step: which parameters are loaded (see `mlm_dist.load`).

    Attributes:
        config: of the run.
        run_dir: the run directory.
        step: number of steps that the parameters were trained for; None if the run directory does not record it.
        tokenizer: of the run.
        encoder: on `device`, in evaluation mode.

    Raises:
        UserError: `path` is not a run directory, it has no trained parameters yet or none of this step, its files are
            damaged or were changed after the training, or a parameter is not finite.
    """

    def __init__(self, path: Path, device: torch.device, step: Step | None = None) -> None:
        self.run_dir = RunDir(path)
        self.device = device
        self.config, self.tokenizer, parameters, self.step = read_trained(self.run_dir, step)
        self.encoder = build_model(self.config.model)
        self.encoder.load_state_dict(parameters)
        self.encoder.to(device).eval()
        self._predictor = Predictor(self.encoder, self.tokenizer, device)

    def fill(self, text: str, top: int = 5) -> Filling:
        """Fill the masks of a text: list candidates for each mask, and fill all masks.

        Args:
            text: a text of any length with one or more masks: `[MASK]` for one token, `[MASK*n]` for a word of n
                tokens. A space before a mask is part of the masked word.
            top: number of candidates per mask.

        Returns:
            A `Filling`: `masks`, the candidates for each mask, predicted while all other masks are still in the text;
            `text`, the text with all masks filled one after the other, the most confident prediction first; and its
            `probability`.

        Raises:
            UserError: the text has no mask, n is 0 or larger than the block size, `top` is above 1000 although a
                mask stands for several tokens, or the text contains a lone surrogate.
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
        """Generate text: from nothing, after a prompt, or in the gaps of a text.

        A text longer than the model's block size is generated from left to right, in stretches of at most half a block.

        Args:
            text: the given text, of any length. Each `[GAP:n]` in it is replaced by n generated tokens; a space before
                it is part of the gap. A text without gaps is continued; a space at its end is part of the continuation.
            length: number of tokens to generate after a text without gaps; None: the model's block size.
            samples: number of texts to generate. Up to rounding, a sample does not depend on this number.
            order: `random` samples which positions to unmask, and a token for each, as sampling from the model's own
                distribution requires. `confidence` samples a token for every masked position and keeps the most likely
                ones.
            steps: number of forward passes for the tokens that are generated together; None: one per token, which is
                also the maximum.
            temperature: divides the logits; 0 always takes the most likely token.
            top_p: sample from the smallest set of most likely tokens whose probabilities add up to at least this
                (nucleus sampling).
            remask: fraction of the generated tokens that each pass masks again, so that they are generated anew.
            seed: the same seed gives the same text on the same machine.
            watch: called after each pass with the text so far, masked tokens shaded. The samples are then generated one
                at a time.

        Returns:
            One `Generation` per sample.

        Raises:
            UserError: a value is out of bounds, a gap is misspelt, the text has a `[MASK]`, `length` is given for a
                text with gaps, or the text contains a lone surrogate.
        """
        request = Request(text, length, samples, order, steps, temperature, top_p, remask, seed)
        return generate(self._predictor, request, watch)

    def score(self, texts: Sequence[str], within_word: bool = False) -> list[Score]:
        """Compute the pseudo-log-likelihood of texts, in nats.

        This is the sum of the log-probabilities of the tokens of a text, each predicted while it is masked.

        Args:
            texts: texts of any length.
            within_word: with each token, also mask the tokens after it in the same word, so that the subwords of a rare
                word do not reveal each other.

        Returns:
            One `Score` per text: its `log_likelihood`, and its number of `tokens`.

        Raises:
            UserError: `texts` is a single text, or a text contains a lone surrogate.
        """
        refuse_single("texts", texts, "text")
        return score(self._predictor, texts, within_word)

    def probe(self, pairs: Sequence[MinimalPair], within_word: bool = False) -> Probe:
        """Compute how often the acceptable sentence of a minimal pair is more likely than the other one.

        Args:
            pairs: one or more pairs, such as `read_pairs` in mlm_dist/texts/minimal_pairs.py reads.
            within_word: as in `score`.

        Raises:
            UserError: there is no pair, or a sentence contains a lone surrogate.
        """
        if not pairs:
            raise UserError("there are no minimal pairs")
        scores = score_pairs(lambda texts: self.score(texts, within_word), pairs)
        return compare(self.step, self.config.model.block_size, within_word, pairs, scores)

    def embed(
        self, texts: Sequence[str], *, layer: int | None = None, pool: Pooling = "mean", normalize: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embed texts of any length as the mean of their hidden states.

        Args:
            texts: a text longer than the block size is read block by block.
            layer: 0 for the embeddings, n for the output of block n; None: the last block. These are the
                `hidden_states` of the exported model in transformers, of which only the last ones are normalized.
            pool: `mean` over all tokens; `cls`, the state of the first token of the text alone; or `weighted`, the mean
                with the weight i for the token at position i of the text, from 1.
            normalize: whether vectors are scaled to a length of 1.

        Returns:
            (texts, embedding_dim), one row per text. The vector of a text without tokens is zero.

        Raises:
            UserError: `texts` is a single text, a text contains a lone surrogate, or `layer` or `pool` is out of
                bounds.
        """
        refuse_single("texts", texts, "text")
        return embed(self._predictor, texts, layer, pool, normalize)

    def check_layer(self, layer: int | None) -> None:
        """Raise a `UserError` unless the model has this layer, as in `embed`."""
        check_layer(self.config.model, layer)
