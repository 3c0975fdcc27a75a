"""Builds the native core once per session; `core` is one library forced to one instruction set."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not: kernel_library, kernel_truth

from kernel_build import build, simde_options
from kernel_library import Library

ISAS = ["ref", "avx2", "avx512", "neon", "avx512-emulated", "neon-emulated"]


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(build("kernel-tests") / "libirstd.so")


@pytest.fixture(scope="session")
def emulated_library() -> Library:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("what is emulated runs on x86")
    return Library(build("kernel-tests-simde", *simde_options()) / "libirstd.so")


def core_for(isa: str, request) -> Library:
    if isa.endswith("-emulated"):
        return request.getfixturevalue("emulated_library")
    library = request.getfixturevalue("library")
    if not library.isas().get(isa):
        pytest.skip(f"this CPU or build has no {isa}")
    return library


@pytest.fixture(params=ISAS)
def core(request):
    """The library with IRSTD_ISA forced, for each instruction set."""
    library = core_for(request.param, request)
    with library.forced(request.param.split("-")[0]):
        yield library


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """The tensors are small; torch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_forced_isa():
    before = os.environ.pop("IRSTD_ISA", None)
    yield
    if before is not None:
        os.environ["IRSTD_ISA"] = before
