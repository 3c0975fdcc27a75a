"""Runs in the emulated Python: one inference of a peer engine between the markers."""

import ctypes
import sys
from importlib import import_module

import numpy as np


def main() -> None:
    _, adapter, folder, inputs, output, markers = sys.argv
    library = ctypes.CDLL(markers)
    session = import_module(adapter).open_session(folder, "", 1)
    x = np.load(inputs)["check"][:1]
    # The first inference warms up: engines allocate and pack weights in it.
    np.save(output, session.run(x))
    call = session.prepare(x)
    library.mark_start()
    call()
    library.mark_stop()


main()
