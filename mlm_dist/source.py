"""What `init_from` names: a run, a checkpoint of a run, or a model that `export` wrote."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlm_dist.errors import UserError
from mlm_dist.exported_shape import CONFIG_JSON, WEIGHTS

Step = int | Literal["best", "newest"]
"""A checkpoint of a run: that of a step, the one with the lowest validation loss, or the newest undamaged one."""

CONFIG = "config.yaml"  # of a run
MODEL = "model.pth"
CHECKPOINTS = "checkpoints"
# The keys of the model that a run has in common with its source.
SHARED = (
    "name",
    "embedding_dim",
    "heads",
    "blocks",
    "tie_embeddings",
    "activation",
    "qk_norm",
    "positions",
    "logit_softcap",
)
AT_STEP = re.compile(r"(?P<folder>.+)@(?P<step>\d{1,18}|best|newest)")


@dataclass(frozen=True)
class Source:
    """Where the first parameters of a run come from.

    Attributes:
        name: as the user wrote it.
        folder: a run directory, or a folder that `export` wrote.
        step: a checkpoint of the run; None: its final parameters, or its newest checkpoint if it is unfinished.
        is_exported: whether `export` wrote the folder.
        is_final: whether the final parameters were named, even if the run is unfinished.
    """

    name: str
    folder: Path
    step: Step | None = None
    is_exported: bool = False
    is_final: bool = False

    @classmethod
    def parse(cls, name: str) -> "Source":
        """Parse `RUN`, `RUN@1000`, `RUN@best`, `RUN@newest`, `RUN/model.pth`, or the folder of an exported model.

        Raises:
            UserError: there is no such run or folder.
        """
        path, step = Path(name), None
        if not kind(path) and (match := AT_STEP.fullmatch(name)):
            path, step = Path(match["folder"]), parse_step(match["step"])
        is_final = path.name == MODEL and kind(path) == "file"
        folder = path.parent if is_final else path
        if kind(folder / CONFIG) == "file":
            return cls(name, folder, step, is_final=is_final)
        if step is None and not is_final and all(kind(folder / file) == "file" for file in (CONFIG_JSON, WEIGHTS)):
            return cls(name, folder, is_exported=True)
        raise UserError(f"init_from {name}: {explain(path, folder)}")


def parse_step(text: str) -> Step:
    """The step in `RUN@STEP`."""
    return "best" if text == "best" else "newest" if text == "newest" else int(text)


def explain(path: Path, folder: Path) -> str:
    """Why a path names no parameters."""
    run, at, step = str(path).rpartition("@")
    if not kind(path) and at and kind(Path(run)) == "folder":
        return f"{step} is not a step: give RUN@1000, RUN@best or RUN@newest"
    if not kind(path):
        return "there is no such run; give a run directory, RUN@STEP, RUN@best, or a folder that `export` wrote"
    if kind(path) == "file" and path.name != MODEL:
        return f"it is a file; give a run directory, its {MODEL}, or a folder that `export` wrote"
    return f"{folder} has neither the {CONFIG} of a run nor the {CONFIG_JSON} and {WEIGHTS} of an exported model"


def kind(path: Path) -> Literal["file", "folder", ""]:
    """What a path is; empty if there is no such file or folder, or cannot be, as with a name that is too long."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    except OSError:
        return ""


def has_checkpoints(run_dir: str) -> bool:
    """Whether a run has begun: its directory has a config and checkpoints."""
    return kind(Path(run_dir, CONFIG)) == "file" and any(Path(run_dir, CHECKPOINTS).glob("step-*"))
