"""The machine a measurement ran on, its state before and after, and what makes the figures doubtful.

Everything is read from ``/proc`` and ``/sys``; what a machine does not tell is None and, where it matters, a flag.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

#: Distributions whose version can change a figure.
PACKAGES = ("torch", "onnxruntime", "ai-edge-litert", "tflite-runtime", "numpy")

#: Validity flag -> what it means for the figures.
FLAGS: dict[str, str] = {
    "short-measurement": "fewer than 100 runs or less than 10 s per candidate: good for a look, not for a claim",
    "governor-unknown": "the system does not tell its frequency governor",
    "governor-not-performance": "the frequency governor may lower the clock during the measurement",
    "frequency-drift": "the clock of a used core changed by more than 10 % between start and end",
    "throttled": "the CPU reported thermal throttling during the measurement",
    "other-load": "the load average was higher than the cores in use before the measurement began",
    "preempted": "other processes took more than 5 % of a single-threaded candidate's time",
    "stolen-time": "the hypervisor took more than 1 % of the processor time",
    "virtual-machine": "measured in a virtual machine: clock and neighbours are out of sight",
    "not-pinned": "the system does not allow to pin processes to cores",
    "denormals": "flush-to-zero could not be set in every candidate: denormals may slow some of them",
    "reference-kernels": "a candidate ran our scalar reference kernels: its speed says nothing",
    "not-equal": "an artefact differs from PyTorch beyond its tolerance: irstd-edge verify says where",
    "skipped-candidates": "some candidates were left out because their runtime is missing",
}


def device(sys_root: Path = Path("/")) -> dict:
    """What does not change: ``{cpu, architecture, cores, memory_bytes, os, virtual_machine, container, features}``."""
    info = _read(sys_root / "proc/cpuinfo")
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read(sys_root / "proc/meminfo"), re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", info, re.MULTILINE)
    features = set(flags.group(1).split()) if flags else set()
    notable = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_vpopcntdq", "amx_int8", "asimd", "asimddp",
               "i8mm", "sve", "sve2")
    return {
        "cpu": _cpu_name(info, sys_root) or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "os": f"{platform.system()} {platform.release()}",
        "virtual_machine": "hypervisor" in features,
        "container": any((sys_root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        "features": [name for name in notable if name in features],
    }


def versions() -> dict[str, str]:
    """Python and the packages of :data:`PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def snapshot(sys_root: Path = Path("/")) -> dict:
    """The state now: load average, governor and MHz per core, temperatures in °C, throttling count, CPU ticks."""
    cpus = sorted((sys_root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=lambda p: int(p.name[3:]))
    governors = sorted({g for cpu in cpus if (g := _read(cpu / "cpufreq/scaling_governor").strip())})
    temperatures = {}
    for zone in sorted((sys_root / "sys/class/thermal").glob("thermal_zone*")):
        if (value := _read(zone / "temp").strip()).lstrip("-").isdigit():
            temperatures[f"{zone.name} {_read(zone / 'type').strip()}".strip()] = int(value) / 1000
    throttles = [int(v) for cpu in cpus if (v := _read(cpu / "thermal_throttle/core_throttle_count").strip()).isdigit()]
    ticks = re.search(r"^cpu +(.*)$", _read(sys_root / "proc/stat"), re.MULTILINE)
    fields = [int(v) for v in ticks.group(1).split()] if ticks else []
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "governors": governors or None,
        "frequency_mhz": _frequencies(cpus, sys_root) or None,
        "temperatures_c": temperatures or None,
        "throttle_count": sum(throttles) if throttles else None,
        # user and nice include guest time already
        "cpu_ticks": {"total": sum(fields[:8]), "stolen": fields[7]} if len(fields) >= 8 else None,
    }


def flags_of(before: dict, after: dict, machine: dict, cores: Iterable[int]) -> list[str]:
    """The flags of :data:`FLAGS` that the conditions raise; ``cores`` are those that candidates ran on."""
    used = sorted(set(cores))
    flags = []
    if not before["governors"]:
        flags.append("governor-unknown")
    elif before["governors"] != ["performance"]:
        flags.append("governor-not-performance")
    clocks = zip(before["frequency_mhz"] or [], after["frequency_mhz"] or [], strict=False)
    if any(i in used and abs(b - a) > 0.1 * b for i, (b, a) in enumerate(clocks)):
        flags.append("frequency-drift")
    if (after["throttle_count"] or 0) > (before["throttle_count"] or 0):
        flags.append("throttled")
    if before["load_average"] and before["load_average"][0] > max(len(used), 1):
        flags.append("other-load")
    if before["cpu_ticks"] and after["cpu_ticks"]:
        delta = {key: after["cpu_ticks"][key] - before["cpu_ticks"][key] for key in ("total", "stolen")}
        if delta["stolen"] > 0.01 * max(delta["total"], 1):
            flags.append("stolen-time")
    if machine["virtual_machine"]:
        flags.append("virtual-machine")
    if not used:
        flags.append("not-pinned")
    return flags


def usable_cores() -> list[int]:
    """The cores this process may run on; empty where the system does not tell (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def choose_cores(count: int) -> list[int]:
    """``count`` usable cores for a candidate, one per physical core first, the highest numbers first.

    Low-numbered cores serve interrupts, and on most phones and boards the big cores come last.
    Empty where processes cannot be pinned. Raises ``ValueError`` where there are fewer cores.
    """
    cores = usable_cores()
    if not cores:
        return []
    if count > len(cores):
        raise ValueError(f"{count} threads on {len(cores)} usable cores; ask for --threads {len(cores)} at most")
    first_siblings, others, seen = [], [], set()
    for core in reversed(cores):
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")).strip() or str(core)
        (others if siblings in seen else first_siblings).append(core)
        seen.add(siblings)
    return sorted((first_siblings + others)[:count])


def energy_reason() -> str:
    """Why there is no energy figure; joules are never estimated from a nominal power."""
    if any(os.access(p, os.R_OK) for p in Path("/sys/class/powercap").glob("*/energy_uj")):
        return "this release does not read the processor's energy counter yet"
    return "this machine has no power counter that can be read"


def _frequencies(cpus: list[Path], sys_root: Path) -> list[float]:
    clocks = [_read(cpu / "cpufreq/scaling_cur_freq").strip() for cpu in cpus]
    if clocks and all(c.isdigit() for c in clocks):
        return [int(c) / 1000 for c in clocks]
    return [float(v) for v in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read(sys_root / "proc/cpuinfo"), re.MULTILINE)]


def _cpu_name(info: str, sys_root: Path) -> str:
    for key in ("model name", "Hardware", "Model"):
        if found := re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE):
            return found.group(1).strip()
    return _read(sys_root / "proc/device-tree/model").strip("\0\n ")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
