"""Flush-to-zero of the floating-point unit, the same for every engine.

Denormal activations can slow a network tenfold, and engines differ in whether they flush them. A worker sets the
mode itself, after the runtime is loaded (ONNX Runtime resets it when the first session opens); threads started
later inherit it.
"""

from __future__ import annotations

import ctypes
import platform

#: Machine -> (index of the control word within fenv_t in 32-bit words, bits that flush results and operands).
_CONTROL = {"x86_64": (7, 0x8040), "aarch64": (0, 1 << 24)}


def set_flush_to_zero() -> bool:
    """Flush denormals in this thread and those it starts from now on; False where this is not possible."""
    if platform.system() != "Linux" or platform.machine() not in _CONTROL:
        return False
    word, bits = _CONTROL[platform.machine()]
    environment = (ctypes.c_uint32 * 16)()  # fenv_t takes 32 bytes on x86-64, 8 on AArch64
    try:
        libm = ctypes.CDLL("libm.so.6")
    except OSError:
        return False
    libm.fegetenv(environment)
    environment[word] |= bits
    libm.fesetenv(environment)
    return flushes_to_zero()


def flushes_to_zero() -> bool:
    """Whether float32 arithmetic of this thread flushes denormals, by trying it."""
    import numpy as np

    with np.errstate(under="ignore"):
        return not (np.full(8, 1e-38, np.float32) * np.float32(0.01)).any()
