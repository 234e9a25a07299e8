"""One process or several that share a training step, started alike: `torchrun` sets the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from DiffeoRegLib.errors import DeviceError


@dataclass(frozen=True)
class Processes:
    """Which one of how many this is, and the device it computes on."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @property
    def leads(self) -> bool:
        """True for the one that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def share(self, network: nn.Module) -> None:
        """Gives every process the leader's parameters and buffers."""
        if self.count > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined(device: str | torch.device = "cpu") -> Iterator[Processes]:
    """The group this process was started in by `torchrun`, or itself alone.

    device: `cuda` takes the process's own card of several.
    Raises DeviceError when there are fewer cards than processes.
    """
    chosen = torch.device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"Process {local} has no card: there are {torch.cuda.device_count()}. Start fewer processes."
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), count, chosen)
    finally:
        distributed.destroy_process_group()


def sum_gradients(
    parameters: Iterable[nn.Parameter], figures: Tensor, processes: Processes
) -> tuple[Tensor, Tensor]:
    """All gradients as one list of numbers and further figures (n,), both summed over the processes.

    One message per step; a parameter without a gradient anywhere counts as zero.
    """
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten().to(torch.float32) for p in parameters
    ]
    together = processes.sum(torch.cat([*parts, figures.to(parts[0].device, torch.float32)]))
    return together[: -len(figures)], together[-len(figures) :]
