"""Several processes of one launch that act as one.

Training follows a simple rule: every process draws the same global batch from the same generators, computes its own
part of it, and the gradients are averaged. So the number of processes changes the speed and nothing else, and the
batch of the settings is always the global one.

Start several processes with `accelerate launch --multi_gpu --num_processes P SCRIPT`; with device 'cpu' the same
command runs them on CPU over gloo (`accelerate launch --cpu` starts a single one where there is no MPI).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is used: the store asks `several` without need of PyTorch
    from torch import Tensor

__all__ = ["Team", "several"]


def several() -> bool:
    """Whether this process is one of several of a launch."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


class Team:
    """The processes of a launch; a team of one where there was none.

    Args:
        device: 'cpu', 'cuda' or 'mps'; one of several processes gets its own device of that kind. None = the kind that
            was launched for: CUDA where there is one, else CPU.

    Attributes:
        size, rank: number of processes and the number of this one.
        device: of this process.

    Raises:
        ValueError: several processes were launched for another kind of device.
    """

    def __init__(self, device: str | None = None):
        import torch
        from accelerate import Accelerator

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = device.split(":")[0]
        # One process keeps its own device: accelerate's is fixed by the first use in a Python process.
        self.accelerator = Accelerator(cpu=several() and kind == "cpu")
        self.size, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.device = device
        if several():
            if self.size == 1 or self.accelerator.device.type != kind:
                raise ValueError(
                    f"several processes were launched, but not for device {kind!r}: set device to the kind the launch "
                    "is for, or start one process"
                )
            self.device = kind if kind == "cpu" else str(self.accelerator.device)

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's rows of a global batch; parts are contiguous and differ by one row at most.

        Raises:
            ValueError: fewer rows than processes.
        """
        if count < self.size:
            raise ValueError(f"a batch of {count} clips cannot be shared by {self.size} processes: start fewer")
        return slice(*(count * k // self.size for k in (self.rank, self.rank + 1)))

    def weight(self, count: int) -> float:
        """Factor that turns a mean over this process's part into its share of the mean over the global batch."""
        rows = self.part(count)
        return (rows.stop - rows.start) * self.size / count

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Rows of all processes in the order of the global batch, with gradient to the process that made them.

        Args:
            part: (n, ...) rows of this process.
            count: rows of the global batch.

        Returns:
            (count, ...).
        """
        if self.size == 1:
            return part
        rows = self.part(count)
        whole = part.new_zeros(count, *part.shape[1:])
        whole[rows] = part
        if whole.requires_grad:  # every process's loss reads these rows, so their gradient is the sum of all
            whole.register_hook(lambda gradient: self.accelerator.reduce(gradient, "sum"))
        others = whole.detach()
        return whole + (self.accelerator.reduce(others, "sum") - others)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over the processes, in one transfer.

        This stands in for `DistributedDataParallel`, which wants one forward call per step: a step of the method calls
        its models several times, and its gradients are those of small adapters.
        """
        if self.size > 1 and tensors:
            import torch

            mean = self.accelerator.reduce(torch.cat([t.reshape(-1) for t in tensors]), "mean")
            for tensor, new in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(new.view_as(tensor))

    def wait(self) -> None:
        """Return when all processes have called this."""
        self.accelerator.wait_for_everyone()

    def from_main(self, value: Any) -> Any:
        """The main process's value."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
