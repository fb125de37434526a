"""How runners are asked: llama-server, what serves OpenAI's interface, llama-perplexity, llama-cli, llama-tokenize."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bitconv.system.errors import BitconvError, Code, one_line, option

# Of a runner's context: room for the text and what follows it.
CONTEXT = 512
# Of llama-perplexity, which takes two windows at least.
WINDOW = 128
# The most likely next tokens that are asked for.
TOP = 40
_LOG_LINES = 3
_SERVED = "serve_llama_cpp.py"
# Packages that hold a runner: their module, and the script beside this file that runs it.
PACKAGES = {
    "xllamacpp": ("xllamacpp", _SERVED),
    "ik-llama-cpp-python": ("ik_llama_cpp", "answer_ik_llama_cpp.py"),
}


Parsed = TypeVar("Parsed")


class CannotLoad(Exception):  # noqa: N818 - no error of bitconv's: it is what is told of the runner
    """The runner does not start with the file. The message is the end of what it said."""


class Asked(NamedTuple):
    """What a runner is started with."""

    file: Path
    threads: int
    batch: int | None  # the most tokens at a time, where the file's type has a limit
    seconds: float  # that it may take in all


class Contact:
    """A runner that can be asked. A question that cannot be put to it is answered with None."""

    def tokens(self, text: str) -> list[int] | None:
        """Of a text, without those that are put around it."""
        return None

    def next_tokens(self, ids: Sequence[int]) -> dict[int, float] | None:
        """Natural logarithms of the probabilities of the most likely tokens after these."""
        return None

    def perplexity(self, text: str) -> float | None:
        """As llama-perplexity prints it: of the second half of each window of WINDOW tokens."""
        return None

    def continuation(self, prompt: str, count: int) -> str | None:
        """The likeliest tokens after a prompt, as text."""
        return None


@contextlib.contextmanager
def contact(runner: str, asked: Asked, model: str | None) -> Iterator[Contact]:
    """A runner by its program's path, a server's URL or a package's name, as long as the context lasts.

    model: its name at a server that has several. BitconvError where nothing can be asked there.
    """
    if runner.startswith(("http://", "https://")):
        yield _served(runner.rstrip("/"), model, asked.seconds)
    elif runner in PACKAGES:
        module, script = PACKAGES[runner]
        if importlib.util.find_spec(module) is None:
            cause = f"{runner} is not installed"
            raise BitconvError(cause, code=Code.PACKAGE, way_out=f"pip install {runner}, or name a program or a URL")
        command = [sys.executable, str(Path(__file__).with_name(script)), str(asked.file), str(CONTEXT)]
        with _running([*command, str(asked.threads)]) as process:
            if script == _SERVED:
                url = process.wait_for(re.compile(r"^listening at (\S+)$", re.MULTILINE), asked.seconds)
                yield _Server(url, asked.seconds)
            else:
                yield _Lines(process, asked.seconds)
    else:
        path = Path(runner)
        if not path.is_file():
            raise BitconvError("no such program", code=Code.NOT_FOUND, file=runner, way_out="name a program or a URL")
        with _by_program(path, asked) as found:
            yield found


@contextlib.contextmanager
def _by_program(path: Path, asked: Asked) -> Iterator[Contact]:
    """What a program is, its own help tells: forks and releases have others names for them."""
    told = _help(path)
    if "--slots" in told or "--slot-save-path" in told:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--host", "127.0.0.1", "--port", str(port), "-np", "1"]
        with _running([str(path), *_options(asked, told), *options]) as process:
            url = f"http://127.0.0.1:{port}"
            process.wait_until(lambda: _is_ready(url), asked.seconds)
            yield _Server(url, asked.seconds)
    elif "--ppl-stride" in told:
        yield _Perplexity(path, _options(asked, told), asked.seconds)
    elif "--show-count" in told:
        yield _Tokenizer(path, asked)
    elif "--no-display-prompt" in told:
        yield _Completion(path, [*_options(asked, told), *(["-no-cnv"] if "-no-cnv" in told else [])], asked.seconds)
    else:
        raise BitconvError(
            "is no program that can be asked: its --help is not that of llama-server, llama-cli, llama-completion, "
            "llama-perplexity or llama-tokenize",
            code=Code.ASKED,
            file=path,
        )


def _options(asked: Asked, told: str) -> list[str]:
    options = ["-m", str(asked.file), "-c", str(CONTEXT), "-t", str(asked.threads)]
    options += [] if asked.batch is None else ["-b", str(asked.batch), "-ub", str(asked.batch)]
    return [*options, *(["--no-warmup"] if "--no-warmup" in told else [])]


def _help(path: Path) -> str:
    try:
        done = subprocess.run(
            [path, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        cause = one_line(getattr(error, "strerror", None) or str(error))
        raise BitconvError(f"does not run: {cause}", code=Code.ASKED, file=path) from None
    return done.stdout.decode("utf-8", "replace")


class _Process:
    """A program that runs until it is not needed, in a group of its own, so that all of it ends."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_for(self, pattern: re.Pattern[str], seconds: float) -> str:
        """What the pattern's group finds in the log."""
        self.wait_until(lambda: pattern.search(self.text()), seconds)
        found = pattern.search(self.text())
        assert found
        return found[1]

    def wait_until(self, ready: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise CannotLoad(_end(self.process.returncode, self.text()))
            if time.monotonic() > end:
                raise CannotLoad(f"it was not ready after {seconds:g} seconds")
            time.sleep(0.05)

    def text(self) -> str:
        """All that it has printed."""
        return self.log.read_text("utf-8", "replace")


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[_Process]:
    with tempfile.TemporaryDirectory(prefix="bitconv-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            # Its input is a pipe that closes with this process, whatever happens to it.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield _Process(process, log)
        finally:
            assert process.stdin
            process.stdin.close()
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                    break


def _end(code: int, log: str) -> str:
    """How a program ended, by its exit code and its log."""
    if code < 0:
        return ": ".join(filter(None, [f"it crashes, with signal {-code}", _last(_errors(log))]))
    return last_lines(log) or f"it ended with code {code}"


def last_lines(log: str) -> str:
    """The end of a log, in one line; errors where there are any."""
    return _last(_errors(log) or [line.strip() for line in log.splitlines() if line.strip()])


def _errors(log: str) -> list[str]:
    wrong = re.compile(r"error|unknown|invalid|failed|assert|abort", re.IGNORECASE)
    return [line.strip() for line in log.splitlines() if wrong.search(line)]


def _last(lines: list[str]) -> str:
    return one_line("; ".join(lines[-_LOG_LINES:]))[:500]


class _Lines(Contact):
    """answer_ik_llama_cpp.py, whose answers stand below each other in its log, among what the runner says."""

    def __init__(self, process: _Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._answered = 0
        self._answer()

    def tokens(self, text: str) -> list[int] | None:
        return [int(token) for token in self._ask(text=text)]

    def next_tokens(self, ids: Sequence[int]) -> dict[int, float] | None:
        return {int(token): float(value) for token, value in self._ask(ids=list(ids), top=TOP)}

    def _ask(self, **question: Any) -> Any:
        stdin = self._process.process.stdin
        assert stdin
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and its log says why
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        """The next line that starts as an answer does."""
        self._process.wait_until(lambda: len(self._answers()) > self._answered, self._seconds)
        self._answered += 1
        return json.loads(self._answers()[self._answered - 1])

    def _answers(self) -> list[str]:
        return re.findall(r"^answer: (.*)\n", self._process.text(), re.MULTILINE)


class _Server(Contact):
    """llama-server of llama.cpp and its forks."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds

    def tokens(self, text: str) -> list[int] | None:
        told = self._post("/tokenize", content=text, add_special=False)
        return _understood(self._url, lambda: [int(token) for token in told["tokens"]])

    def next_tokens(self, ids: Sequence[int]) -> dict[int, float] | None:
        # Of a sampler that changes nothing: older servers tell the probabilities that it leaves.
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "seed": 1}
        answer = self._post("/completion", prompt=list(ids), n_predict=1, n_probs=TOP, cache_prompt=True, **plain)

        def likeliest() -> dict[int, float] | None:
            told = (answer.get("completion_probabilities") or [{}])[0].get("top_logprobs")
            return None if told is None else {int(token["id"]): float(token["logprob"]) for token in told}

        return _understood(self._url, likeliest)

    def continuation(self, prompt: str, count: int) -> str | None:
        answer = self._post("/completion", prompt=prompt, n_predict=count, temperature=0)
        return _understood(self._url, lambda: str(answer["content"]))

    def _post(self, path: str, **body: Any) -> Any:
        return _ask(self._url + path, body, self._seconds)


class _OpenAI(Contact):
    """What serves OpenAI's completions."""

    def __init__(self, url: str, model: str, seconds: float) -> None:
        self._url = url
        self._model = model
        self._seconds = seconds

    def continuation(self, prompt: str, count: int) -> str | None:
        body = {"model": self._model, "prompt": prompt, "max_tokens": count, "temperature": 0, "seed": 1}
        answer = _ask(f"{self._url}/completions", body, self._seconds)
        return _understood(self._url, lambda: str(answer["choices"][0]["text"]))


def _served(url: str, model: str | None, seconds: float) -> Contact:
    """What a URL serves: llama-server, by its /props, else OpenAI's interface at /v1."""
    with contextlib.suppress(BitconvError):
        props = _ask(f"{url}/props", None, seconds)
        if isinstance(props, dict) and "default_generation_settings" in props:
            return _Server(url, seconds)
    root = url if url.endswith("/v1") else f"{url}/v1"
    models = _ask(f"{root}/models", None, seconds)
    names = _understood(url, lambda: [str(one["id"]) for one in models["data"]])
    if model is None and len(names) != 1:
        raise BitconvError(
            f"serves {len(names)} models: {one_line(', '.join(names))[:200]}",
            code=Code.ASKED,
            file=url,
            way_out=f"name one with {option('model')}",
        )
    return _OpenAI(root, model or names[0], seconds)


def _understood(url: str, parse: Callable[[], Parsed]) -> Parsed:
    """What an answer holds. BitconvError where it is of another form."""
    try:
        return parse()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        cause = one_line(f"gives answers of another form than llama-server's and OpenAI's: {error!r}")
        raise BitconvError(f"{cause:.200}", code=Code.ASKED, file=url) from None


def _ask(url: str, body: Any, seconds: float) -> Any:
    """The JSON of an answer. Nothing but this address is contacted, whatever proxies the environment names."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
    try:
        with opener.open(request, timeout=seconds) as answer:
            return json.loads(answer.read(1 << 26))
    except urllib.error.HTTPError as error:
        cause = f"answers with status {error.code}: {one_line(error.read(500).decode('utf-8', 'replace'))}"
    except (OSError, ValueError, UnicodeDecodeError) as error:
        cause = f"gives no answer: {one_line(str(getattr(error, 'reason', error)))}"
    raise BitconvError(cause, code=Code.ASKED, file=url, way_out="start the runner with the file, and name its address")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *unused: object) -> None:
        return None


def _is_ready(url: str) -> bool:
    with contextlib.suppress(BitconvError):
        _ask(f"{url}/health", None, 5)
        return True
    return False


class _Perplexity(Contact):
    def __init__(self, path: Path, options: list[str], seconds: float) -> None:
        self._command = [str(path), *options, "-c", str(WINDOW)]
        self._seconds = seconds

    def perplexity(self, text: str) -> float | None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            log = _output([*self._command, "-f", file.name], self._seconds, errors=True)
        found = re.search(r"Final estimate: PPL = (\S+)", log)
        if found is None:
            raise CannotLoad(last_lines(log))
        return float(found[1])


class _Completion(Contact):
    def __init__(self, path: Path, options: list[str], seconds: float) -> None:
        self._command = [str(path), *options, "--no-display-prompt", "--simple-io", "--temp", "0"]
        self._seconds = seconds

    def continuation(self, prompt: str, count: int) -> str | None:
        text = _output([*self._command, "-p", prompt, "-n", str(count)], self._seconds, errors=False)
        return text.removesuffix("\n").replace(" [end of text]", "")


class _Tokenizer(Contact):
    def __init__(self, path: Path, asked: Asked) -> None:
        self._command = [str(path), "-m", str(asked.file), "--ids", "--no-bos", "--log-disable"]
        self._seconds = asked.seconds

    def tokens(self, text: str) -> list[int] | None:
        told = _output([*self._command, "-p", text], self._seconds, errors=False)
        found = re.search(r"\[([\d, ]*)\]", told)
        if found is None:
            raise CannotLoad(last_lines(told))
        return [int(token) for token in re.findall(r"\d+", found[1])]


def _output(command: list[str], seconds: float, *, errors: bool) -> str:
    """What a program prints. CannotLoad where it does not end well. errors: what it prints to stderr too."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.PIPE,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise CannotLoad(f"it did not end in {seconds:g} seconds") from None
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        log = text if errors else done.stderr.decode("utf-8", "replace")
        raise CannotLoad(_end(done.returncode, log))
    return text
