"""What bitconv finds on this machine: versions, instruction sets, extras, runners, caches."""

from __future__ import annotations

import mmap
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import bitconv
from bitconv import _kernels
from bitconv.system.errors import reports_system_errors
from bitconv.system.jobs import default_threads
from bitconv.system.results import Result

# Programs of llama.cpp and its forks, which share their names.
PROGRAMS = ("llama-cli", "llama-completion", "llama-server", "llama-perplexity", "llama-tokenize", "llama-embedding")
# Packages that hold a runner.
_WHEELS = {
    "xllamacpp": "llama.cpp",
    "llama-cpp-python": "llama.cpp",
    "ik-llama-cpp-python": "ik_llama.cpp",
}
# By which a fork is told from others: a name of ggml's table of types (ggml.c) that it alone has. The last has all that
# the others lack.
_SIGNS = (("ik_llama.cpp", b"iq2_bn\0"), ("bitnet.cpp", b"i2_s\0"), ("llama.cpp", b"tq2_0\0"))
# Where builds put the libraries of a program, from its directory.
_LIBRARIES = (
    ".",
    "../lib",
    "../lib64",
    "../src",
    "../ggml/src",
    "../3rdparty/llama.cpp/src",
    "../3rdparty/llama.cpp/ggml/src",
)
# The extras for users, and what needs them.
_EXTRAS = {"eval": "eval and generate", "report": "report", "torch": "compare"}
_SECONDS = 10


@dataclass(frozen=True)
class FoundRunner:
    """A program or a package.

    Attributes:
        name: Of the program or package.
        runner: Of which project it is; None where nothing tells.
        version: As it says; None where it does not.
        path: Of a program.
    """

    name: str
    runner: str | None
    version: str | None
    path: str | None


@dataclass(frozen=True)
class Extra:
    """An extra of bitconv's.

    Attributes:
        name: As in bitconv[NAME].
        needed_by: Which commands.
        versions: Of its packages; None for one that is missing.
    """

    name: str
    needed_by: str
    versions: dict[str, str | None]

    @property
    def installed(self) -> bool:
        """Whether none is missing."""
        return None not in self.versions.values()


@dataclass(frozen=True, repr=False)
class Surroundings(Result):
    """What was found.

    Attributes:
        version: Of bitconv.
        python: Its version and implementation.
        machine: System and processor.
        threads: How many are used by default.
        instruction_set: That of the kernels in use.
        instruction_sets: Those that this processor has kernels for.
        packages: Versions of what bitconv needs.
        extras: What some commands need besides.
        runners: Programs on PATH, and packages.
        caches: Directories by what they are for.
    """

    version: str
    python: str
    machine: str
    threads: int
    instruction_set: str
    instruction_sets: tuple[str, ...]
    packages: dict[str, str | None]
    extras: tuple[Extra, ...]
    runners: tuple[FoundRunner, ...]
    caches: dict[str, str]


@reports_system_errors
def doctor() -> Surroundings:
    """Look at what there is on this machine.

    Programs of runners on PATH are asked for their version, ten seconds at most each.

    Returns:
        What was found.

    Raises:
        BitconvError: Where the system refuses to say.

    Example:
        >>> bitconv.doctor().instruction_set in bitconv.doctor().instruction_sets
        True
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = dict(_requirements())
    return Surroundings(
        version=bitconv.__version__,
        python=f"{platform.python_version()}, {sys.implementation.name}",
        machine=f"{platform.system()} {platform.release()}, {platform.machine()}",
        threads=default_threads(),
        instruction_set=_kernels.isa(),
        instruction_sets=tuple(_kernels.isas()),
        packages=needed.get(None, {}),
        extras=tuple(Extra(name, commands, needed.get(name, {})) for name, commands in _EXTRAS.items()),
        runners=(*find_programs(), *find_wheels()),
        caches={"models of the Hub": HF_HUB_CACHE},
    )


def find_programs() -> Iterator[FoundRunner]:
    """The programs of runners on PATH, the first of each name."""
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            yield program(Path(path))


def program(path: Path) -> FoundRunner:
    """A program of a runner, which is asked for its version."""
    return FoundRunner(path.name, runner_of(path), _version(path), str(path))


def runner_of(path: Path) -> str | None:
    """Of which project a program is, by the types that it or a library beside it names."""
    real = path.resolve()
    libraries = {
        library.resolve()
        for directory in _LIBRARIES
        for pattern in ("*ggml*", "*llama*")
        for library in (real.parent / directory).glob(pattern)
        if re.search(r"\.(so|dylib|dll)\b", library.name) and library.is_file()
    }
    for files in ({real}, libraries):  # what is beside a program that holds all itself is of another
        for runner, sign in _SIGNS:
            if any(_holds(file, sign) for file in files):
                return runner
    return None


def _holds(file: Path, sign: bytes) -> bool:
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(sign) >= 0
    except (OSError, ValueError):  # not to be read, or empty
        return False


def _version(path: Path) -> str | None:
    try:
        told = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"version:\s*(\S+(?: \(\w+\))?)", told)
    return found[1] if found else None


def find_wheels() -> Iterator[FoundRunner]:
    """The installed packages that hold a runner."""
    for package, runner in _WHEELS.items():
        version = _installed(package)
        if version is not None:
            yield FoundRunner(package, runner, version, None)


def _requirements() -> Iterator[tuple[str | None, dict[str, str | None]]]:
    """By extra, None for what is always needed, the packages that bitconv declares, with the installed versions."""
    declared: dict[str | None, list[str]] = {}
    try:
        stated = metadata.requires("bitconv") or ()
    except metadata.PackageNotFoundError:  # run from its sources alone
        stated = ()
    for text in stated:
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
        if name and name[0] != "bitconv":
            declared.setdefault(extra[1] if extra else None, []).append(name[0])
    for key, names in declared.items():
        yield key, {name: _installed(name) for name in names}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
