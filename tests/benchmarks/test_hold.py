"""Engines held to AVX2: cpuid instructions and nothing else are replaced, and what is answered in their place."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from irstd_edge.benchmarks.peers import compiler, hold

#: `mov $0xa20f` holds the bytes of cpuid and is none.
ASKS = r"""
#include <cpuid.h>
#include <stdio.h>
int main(int count, char **arguments) {
    unsigned a, b, c, d, plain, leaves[] = {7, 0, 7, 1, 1, 0, 13, 0};
    (void)arguments;
    __asm__ volatile("movl $0xa20f, %0" : "=r"(plain));
    printf("[%u", plain);
    for (int i = 0; i < 8; i += 2) {
        __cpuid_count(leaves[i], leaves[i + 1], a, b, c, d);
        printf(", [%u, %u, %u, %u]", a, b, c, d);
    }
    puts("]");
    fflush(stdout);
    if (count > 1) __builtin_trap();
    return 0;
}
"""


@pytest.fixture
def program(tmp_path) -> Path:
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.skip("engines are held on Linux on x86-64 alone")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is missing; install binutils")
    if not compiler.find_compiler():
        pytest.skip("there is no C compiler")
    source = tmp_path / "asks.c"
    source.write_text(ASKS)
    return compiler.compile_c(str(source), tmp_path / "asks")


def asked(program: Path, **environ) -> list:
    done = subprocess.run([program], capture_output=True, text=True, check=True, env=os.environ | environ)
    found = json.loads(done.stdout)
    found[3][1] = 0  # the number of the processor it ran on
    return found


def test_avx512_is_hidden_and_avx2_is_not(program, tmp_path):
    plain, library = asked(program), compiler.compile_c("hold.c", tmp_path / "hold.so", "-shared", "-fPIC")
    other = tmp_path / "linked"
    os.link(program, other)
    assert hold.patch(program) >= 1
    assert asked(other) == plain, "the file that others are linked to is changed"
    found = asked(program, LD_PRELOAD=str(library))
    assert found[0] == plain[0] == 0xA20F
    (a, b, c, d), (a1, _, _, d1), (_, _, features, _), (state, *_) = found[1:]
    assert not b & (1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31) and not c & (1 << 1 | 1 << 6 | 1 << 11 | 1 << 14)
    assert not d & (1 << 23 | 1 << 24 | 1 << 25) and not a1 & (1 << 4 | 1 << 5) and not d1 & (1 << 4 | 1 << 19)
    assert not state & 0xE0
    kept = 1 << 5 | 1 << 8  # AVX2, BMI2
    assert a == plain[1][0] and b & kept == plain[1][1] & kept
    fma_f16c = 1 << 12 | 1 << 29
    assert features & fma_f16c == plain[3][2] & fma_f16c
    trapped = subprocess.run([program, "trap"], capture_output=True, check=False,
                             env=os.environ | {"LD_PRELOAD": str(library)})  # fmt: skip
    assert trapped.returncode == -4, "a trap of the library's own is stepped over"


def test_an_environment_is_copied_once(program, tmp_path):
    python, environ = tmp_path / "envs" / "a" / "bin" / "python", {"PATH": "", "HOME": "/home"}
    python.parent.mkdir(parents=True)
    python.write_text("")
    (tmp_path / "envs/a/freeze.txt").write_text("numpy==2\n")
    shutil.copy(program, tmp_path / "envs/a/lib.so")
    environ["PATH"] = f"{python.parent}:/usr/bin"
    copy, variables = hold.held(python, environ)
    assert copy == tmp_path / "held/a/bin/python" and os.path.samefile(copy, python)
    assert variables["HOME"] == "/home" and variables["PATH"].startswith(str(copy.parent))
    library = tmp_path / "held/a/lib.so"
    before = library.stat().st_mtime_ns
    assert library.read_bytes() != program.read_bytes() == (tmp_path / "envs/a/lib.so").read_bytes()
    hold.held(python, environ)
    assert library.stat().st_mtime_ns == before


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hold.platform, "machine", lambda: "aarch64")
    with pytest.raises(hold.HoldError, match="x86-64"):
        hold.held(tmp_path / "bin/python", {})
    monkeypatch.setattr(hold.sys, "platform", "linux")
    monkeypatch.setattr(hold.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(hold.shutil, "which", lambda name: None)
    with pytest.raises(hold.HoldError, match="binutils"):
        hold.held(tmp_path / "bin/python", {})
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(compiler.CompilerError, match="no C compiler"):
        compiler.compile_c("hold.c", tmp_path / "hold.so")


def test_use_of_avx512_is_what_the_kernel_tells():
    assert hold.used_avx512(2**30, 1.0) is None
    status = Path(f"/proc/{os.getpid()}/arch_status")
    # On a processor without AVX-512 the file is there and empty.
    if not (status.is_file() and status.read_text()):
        pytest.skip("the kernel does not tell about AVX-512")
    assert hold.used_avx512(os.getpid(), 0.0) is False
