"""The counting plugin against programs whose instructions were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from irstd_edge.benchmarks.arm.emulate import CORES, compile_program, emulate

HERE = Path(__file__).parent


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76"])
def test_a_loop_is_counted_exactly(core, qemu, tmp_path):
    program = compile_program("aarch64", tmp_path / "loop", "-nostdlib", "-static", HERE / "loop_aarch64.S")
    assert emulate(core, [program]).windows == (5002,)
    count = emulate(core, [program], mnemonics=True, memory=True)
    assert (count.windows, count.loaded, count.stored) == ((5002,), 40 * 1000, 4 * 1000)
    assert sum(count.mnemonics.values()) == 5002
    assert count.mnemonics["ldp"] == count.mnemonics["b.ne"] == 1000


@pytest.mark.parametrize(("core", "flags"), [("cortex-a53", []), ("cortex-a7", ["-mthumb"]), ("cortex-a7", ["-marm"])],
                         ids=["aarch64", "thumb", "arm"])
def test_windows_of_the_c_markers(core, flags, qemu, tmp_path):
    program = compile_program(CORES[core].preset, tmp_path / "markers", *flags, "-static", HERE / "markers.c")
    assert emulate(core, [program]).windows == (3, 5, 0, 0, 0)


def test_counts_repeat(qemu, tmp_path):
    """A program that allocates and prints, counted whole: nothing of the host leaks into the count."""
    source = tmp_path / "work.c"
    markers = HERE.parents[1] / "runtimes/native/tools/markers.h"
    source.write_text(f"""#include "{markers}"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        int main(void) {{
            IRSTD_MARK_START();
            for (int i = 1; i < 200; i++) {{ char *p = malloc(i * 1000); memset(p, i, i * 1000); printf("%p\\n", p); }}
            IRSTD_MARK_STOP();
        }}""")
    program = compile_program("aarch64", tmp_path / "work", "-static", source)
    first, second = (emulate("cortex-a72", [program], memory=True) for _ in range(2))
    assert first == second and first.windows[0] > 100_000
