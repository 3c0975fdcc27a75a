"""Runs a module of this project under another environment's Python, which has not installed the project.

``python bootstrap.py irstd_edge=FOLDER irstd_edge.benchmarks=FOLDER MODULE [ARGUMENTS]`` puts the named folders in the
places of the packages and runs the module. Nothing else of the project's own environment becomes importable.
"""

import runpy
import sys
import types


def main(arguments: list[str]) -> None:
    while arguments and "=" in arguments[0]:
        name, _, folder = arguments.pop(0).partition("=")
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [folder]
    sys.argv = arguments
    # The folder of this file came first: its names are not top-level modules.
    del sys.path[0]
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


main(sys.argv[1:])
