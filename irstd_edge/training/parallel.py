"""Data parallelism over the processes that ``torchrun`` starts; one process works without any of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def launched_processes() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the other processes of ``torchrun``, if it started this one; yields the device that this one shall use.

    NCCL between GPUs, of which each process takes the one of its local rank; gloo between CPU processes.
    """
    if launched_processes() < 2:
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) without a process group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def mean_over_ranks(values: dict[str, float], device: str) -> dict[str, float]:
    """Each value averaged over the processes; all get the same."""
    size = rank_and_size()[1]
    if size == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    return dict(zip(values, (tensor / size).tolist(), strict=True))


def agree(wish: bool, device: str) -> bool:
    """True in every process where any of them wishes it."""
    if rank_and_size()[1] == 1:
        return wish
    tensor = torch.tensor(float(wish), device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return bool(tensor)
