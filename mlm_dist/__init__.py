"""Pre-train masked language models on your own texts, on one process or many, and use them."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from os import PathLike

    from mlm_dist.inference.model import TrainedModel

__version__ = "0.1.0"


def load(run_dir: "str | PathLike[str]", device: Literal["auto", "cpu", "cuda"] = "auto") -> "TrainedModel":
    """Load the model of a run.

    Args:
        run_dir: a run directory. Of a run that is done its final weights are taken, of another its newest checkpoint.
        device: what to compute on; auto: a GPU where there is one, else the CPU.

    Raises:
        UserError: there is no run there, or nothing trained in it yet.
    """
    # Only now, so that `import mlm_dist` and the verbs' --help do not wait for torch.
    from pathlib import Path  # noqa: PLC0415

    from mlm_dist.distributed import choose_device  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415

    return TrainedModel(Path(run_dir), choose_device(device))
