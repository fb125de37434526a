"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from bitconv import __version__, _kernels
from bitconv.system.jobs import default_threads


def machine(work: Path) -> dict[str, str]:
    """What decides the speed: no names of machines or paths. work: a directory on the disk that is used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": f"{_cpu()}, {default_threads()} cores, kernels for {_kernels.isa()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "file system": _file_system(work),
        "system": _system(),
        "Python": platform.python_version(),
        "bitconv": f"{__version__}, numpy {version('numpy')}",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.platform(terse=True)
    return f"{name}, {platform.system()} {platform.release().partition('-')[0]}"


def _file_system(work: Path) -> str:
    """The type of the mount that holds `work`: of the longest mount point that it lies under."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "not known"
    under = [(point, kind) for point, kind in mounts if work.resolve().is_relative_to(point)]
    return max(under, key=lambda mount: len(mount[0]))[1] if under else "not known"
