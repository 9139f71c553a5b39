"""Pre-train masked language models on your own texts, in one process or many, and use them."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from os import PathLike

    from mlm_dist.inference.model import TrainedModel

__version__ = "0.1.0"


def load(run_dir: "str | PathLike[str]", device: Literal["auto", "cpu", "cuda"] = "auto") -> "TrainedModel":
    """Load the model of a run.

    Args:
        run_dir: a run directory. If the run is finished, its final parameters are loaded, otherwise its newest
            undamaged checkpoint. If there is only one of the two, that one is loaded.
        device: the device to compute on; `auto` is a GPU if there is one, otherwise the CPU.

    Raises:
        UserError: `run_dir` is not a run directory, it has no trained parameters yet, its files are damaged or were
            changed after the training, a parameter is not finite, or `device` is `cuda` and there is no GPU.
    """
    # Imported here, so that `import mlm_dist` and the --help of commands do not wait for torch.
    from pathlib import Path  # noqa: PLC0415

    from mlm_dist.distributed import choose_device  # noqa: PLC0415
    from mlm_dist.inference.model import TrainedModel  # noqa: PLC0415

    return TrainedModel(Path(run_dir), choose_device(device))
