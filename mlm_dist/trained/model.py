"""A trained model, taken from its run directory."""

import pickle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mlm_dist.command_line import read_config
from mlm_dist.data.tokenizer import MASK, Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.model.encoder import Encoder
from mlm_dist.training.checkpoint import find_newest, list_checkpoints, load_checkpoint
from mlm_dist.training.distributed import choose_device
from mlm_dist.training.run_dir import RunDir


class Candidate(NamedTuple):
    """A token that may stand in a mask's place, and how likely the model thinks it."""

    text: str
    probability: float


class TrainedModel:
    """An encoder with its tokenizer, ready to be asked.

    Args:
        path: a run directory. Of a run that is done its `model.pth` is taken, of another its newest checkpoint.
        device: what to compute on.

    Raises:
        UserError: there is no run there, or nothing trained in it yet.
    """

    def __init__(self, path: Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        run_dir = RunDir(path)
        if not run_dir.config.exists():
            raise UserError(f"{path} is no run directory: it has no {run_dir.config.name}")
        self.device = choose_device(device)
        self.tokenizer = Tokenizer.load(run_dir.tokenizer)
        self.encoder = Encoder(read_config(run_dir.config).model)
        try:
            self.encoder.load_state_dict(load_weights(run_dir))
        except RuntimeError as error:
            raise UserError(
                f"{run_dir.config} describes a model of another shape than the weights in {path}"
            ) from error
        self.encoder.to(self.device).eval()

    @torch.no_grad()
    def fill(self, text: str, top: int = 5) -> list[list[Candidate]]:
        """The `top` likeliest tokens for each `[MASK]` in a text, each mask on its own, the likeliest first.

        Raises:
            UserError: the text has no mask, or more tokens than the model sees at once.
        """
        ids = self.tokenizer.encode_with_masks(text)
        places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        block_size = self.encoder.config.block_size
        if not places:
            raise UserError(f"there is no {MASK} in the text: {text}")
        if len(ids) > block_size:
            raise UserError(f"the text has {len(ids)} tokens and the model sees {block_size}: give less text")
        tokens = torch.tensor([ids], device=self.device)
        logits = self.encoder(tokens, torch.tensor([places], device=self.device))[0]
        logits = logits[:, : self.tokenizer.vocab_size].float()
        logits[:, [self.tokenizer.mask_id, self.tokenizer.end_id]] = -torch.inf
        best = logits.softmax(-1).topk(min(top, logits.shape[-1] - 2))
        return [
            [Candidate(self.tokenizer.decode([token]), probability) for token, probability in zip(*pair, strict=True)]
            for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def load_weights(run_dir: RunDir) -> dict[str, Any]:
    """The final weights of a run, or, where it goes on beyond them, those of its newest checkpoint.

    Raises:
        UserError: there are neither, or `model.pth` is damaged.
    """
    goes_on = not run_dir.done.exists() and list_checkpoints(run_dir.checkpoints)
    if goes_on or not run_dir.model.exists():
        place = find_newest(run_dir.checkpoints)
        if place is None:
            raise UserError(f"{run_dir.path} holds neither {run_dir.model.name} nor a checkpoint yet")
        weights: dict[str, Any] = load_checkpoint(place)["model"]
        return weights
    try:
        weights = torch.load(run_dir.model, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{run_dir.model} cannot be read as weights: it is damaged, or of another program") from error
    return weights
