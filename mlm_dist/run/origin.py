"""origin.json: what a run with `init_from` started from."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mlm_dist.errors import UserError
from mlm_dist.files import read_json, replacing


@dataclass(frozen=True)
class Origin:
    """What a run started from.

    Attributes:
        name: the source, as `init_from` named it.
        step: the step of its parameters; None if it is not known.
        sha256: the SHA-256 of its parameters.
        corpora: the corpora that it was trained on: by the path in its config, the absolute path of the folder and the
            SHA-256 of the validation tokens.
    """

    name: str
    step: int | None
    sha256: str
    corpora: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write origin.json. Raises `OSError`."""
        with replacing(file) as content:
            content.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, file: Path) -> "Origin | None":
        """Read origin.json; None if it does not exist.

        Raises:
            UserError: it is damaged.
        """
        if not file.exists():
            return None
        try:
            origin = cls(**read_json(file))
            texts = [
                origin.name,
                origin.sha256,
                *(text for folder, sha256 in origin.corpora.values() for text in (folder, sha256)),
            ]
            if not all(isinstance(text, str) for text in texts) or not isinstance(origin.step, int | None):
                raise ValueError("a value has the wrong type")
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged: restore a copy, or delete it") from error
        return origin


def digest(parameters: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of names and values."""
    total = hashlib.sha256()
    for name in sorted(parameters):
        total.update(name.encode())
        total.update(parameters[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
