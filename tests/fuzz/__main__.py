"""python -m fuzz [SECONDS [TARGET ...]]: a minute for each target; by atheris where it is installed, else by mutate.py.

What makes a target raise is written to fuzz/corpus/TARGET, to be committed with the fix.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
NAMES = ("gguf", "safetensors", "bin", "config", "tokenizer", "card")


def with_mutations(name: str, seconds: float) -> None:
    from fuzz.mutate import mutated
    from fuzz.targets import TARGETS

    target, numbers = TARGETS[name], random.Random(name)
    seed, end, count = target.seed(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutated(seed, numbers)
        try:
            target.read(data)
        except Exception:
            file = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            print(f"{name}: {file}", file=sys.stderr)
            raise
        count += 1
    print(f"{name}: {count} mutations")


def with_atheris(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["bitconv"]):
        from fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    found = Path(tempfile.mkdtemp(prefix="bitconv-fuzz-"))  # what reaches new code, which is no failure
    (found / "seed").write_bytes(target.seed())
    options = [f"-max_total_time={seconds}", "-max_len=100000", f"-artifact_prefix={corpus}/"]
    atheris.Setup([name, *options, str(found), str(corpus)], target.read)
    atheris.Fuzz()


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    names = sys.argv[2:] or list(NAMES)
    if len(names) > 1:  # a process each: atheris ends its own
        codes = [subprocess.call([sys.executable, "-m", "fuzz", str(seconds), name]) for name in names]
        sys.exit(max(codes))
    try:
        import atheris  # noqa: F401
    except ImportError:
        with_mutations(names[0], seconds)
    else:
        if os.environ.get("BITCONV_FUZZ") == "mutations":
            with_mutations(names[0], seconds)
        else:
            with_atheris(names[0], seconds)


main()
