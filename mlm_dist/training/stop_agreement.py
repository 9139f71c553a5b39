"""The agreement of all ranks to stop after the same step."""

from mlm_dist.distributed import Processes
from mlm_dist.training.stopping import StopFile, StopRequest


class StopAgreement:
    """Whether all ranks stop, because one of them was asked to.

    Args:
        request: of this process.
        file: rank 0 looks it up.
        processes: all ranks.

    Attributes:
        reason: why they stop, once they have agreed to; empty until then.
    """

    def __init__(self, request: StopRequest, file: StopFile, processes: Processes) -> None:
        self.request = request
        self.file = file
        self.processes = processes
        self.reason = ""

    def is_reached(self) -> bool:
        """Whether any rank was asked to stop, a few calls ago. A collective: all ranks return the same value."""
        if not self.reason:
            reason = self.request.reason() or (self.file.reason() if self.processes.is_rank_zero else "")
            if self.processes.any_so_far(bool(reason)):
                self.reason = next(filter(None, self.processes.all_gather(reason)))
        return bool(self.reason)
