"""System calls that fail, are interrupted, or do half of what is asked: one at a time, in small conversions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bitconv
import pytest

from synthetic import FIXTURES, make_checkpoint

pytestmark = pytest.mark.slow

SHORT, DIE = -1, -2
FAULTS = {
    "open": (errno.EIO, errno.EMFILE, errno.EINTR, DIE),
    "read": (errno.EIO, errno.EINTR, SHORT, DIE),
    "write": (errno.EIO, errno.ENOSPC, errno.EINTR, SHORT, DIE),
    "fsync": (errno.EIO, errno.ENOSPC, DIE),
    "fallocate": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "rename": (errno.EIO, errno.EXDEV, DIE),
}
FIRST_CALLS = (1, 2, 5, 13)

# Runs the command once for each fault, in a child that was forked when all was imported.
DRIVER = """
import ctypes, json, os, shutil, sys, tempfile
from pathlib import Path
import bitconv
from bitconv.cli import main

library, verb, source, work, cases = ctypes.CDLL(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5]

def child(arguments, case=None):
    with tempfile.TemporaryFile("w+") as stderr:
        process = os.fork()
        if process == 0:
            os.dup2(stderr.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv[1:] = arguments
            code = 1
            try:
                if case:
                    library.set_fault(str(work).encode(), case[0].encode(), case[1], case[2])
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            finally:
                library.set_fault(b"", b"", 0, 0)
                import atexit
                atexit._run_exitfuncs()
                os._exit(code)
        _, status = os.waitpid(process, 0)
        stderr.seek(0)
        return os.waitstatus_to_exitcode(status), stderr.read()

def content(path):
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.exists() else []
    return {str(file.relative_to(work)): file.read_bytes().hex() for file in files if file.is_file()}

getattr(bitconv, verb)(source, work / "warm")
for kind, number, fault in json.loads(cases):
    before = sorted(os.listdir(work)), content(work / "out")
    code, stderr = child([verb, source, str(work / "out"), "--force"], (kind, number, fault))
    result = {"case": [kind, number, fault], "code": code, "stderr": stderr}
    result["same"] = content(work / "out") == before[1]
    if code < 0:
        after, _ = child([verb, source, str(work / "out"), "--force"])
        result["next"] = after
    result["left"] = [name for path, _, names in os.walk(work) for name in names + _ if name.startswith(".bitconv")]
    made = {name.replace("out", "warm", 1): data for name, data in content(work / "out").items()}
    result["right"] = made == content(work / "warm")
    print(json.dumps(result), flush=True)
    shutil.rmtree(work / "out", ignore_errors=True) if verb == "export" else (work / "out").unlink(missing_ok=True)
    if verb == "export":
        shutil.copytree(work / "old", work / "out")
    else:
        shutil.copy(work / "old", work / "out")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler, or the system is not Linux")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("verb", ["convert", "export"])
def test_a_system_call_that_fails(tmp_path: Path, shim: Path, verb: str, kind: str) -> None:
    """Exit 2 with one line and the output as it was, or 0 with the right bytes; killed, the next run sets it right."""
    work = tmp_path / "work"
    work.mkdir()
    if verb == "convert":
        source = make_checkpoint(work / "model", "llama").path
        (work / "old").write_text("an older file")
        shutil.copy(work / "old", work / "out")
    else:
        source = work / "in.gguf"
        bitconv.convert(FIXTURES / "Llama3-1.58-tiny", source)
        bitconv.export(source, work / "old")
        (work / "old" / "config.json").write_text("an older file")
        shutil.copytree(work / "old", work / "out")
    cases = [(kind, number, fault) for number in FIRST_CALLS for fault in FAULTS[kind]]
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, shim, verb, source, work, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"LD_PRELOAD": str(shim)},
    )
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(results) == len(cases), result.stderr
    for result in results:
        assert result["left"] == [], result
        if result["code"] == 2:
            assert result["same"], result
            error = result["stderr"].splitlines()[-1]
            assert "Traceback" not in result["stderr"] and "error" in error and str(work) in error, result
        elif result["code"] == -9:
            assert result["next"] == 0 and result["right"], result
        else:
            assert result["code"] == 0 and result["right"], result
    codes = {result["code"] for result in results}
    assert codes & {2, -9}, "no fault was met"
