"""Script: what llama.cpp, as the xllamacpp wheel brings it, makes of GGUF files: python load_llama_cpp.py OUT FILE...

OUT gets a JSON object: for each file null where it does not load, or else all that tells what it was loaded as: the
hyperparameters and special tokens that llama.cpp prints, the settings and the template of its server, the tokens of a
text, and the likeliest tokens after it with their likelihoods.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xllamacpp

TEXT = 'fn main() {\n  println!("a  b"); // <|eot_id|> don\'t</s> 12345\n}'
SECONDS = 60
# What is printed of a file beside its meaning. EOT: one of the tokens that end a text, all of which are printed as EOG.
_NAMES = re.compile("file format|file type|file size|general.name|EOT token")
_ELSEWHERE = ("model_alias", "model_path", "model_ftype", "media_marker")


def load(file: str) -> dict[str, Any]:
    """The log goes to stderr."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 128
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = 5
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    connection = HTTPConnection(urlsplit(server.listening_address).netloc)

    def ask(method: str, path: str, body: object = None) -> Any:
        connection.request(method, path, json.dumps(body))
        return json.load(connection.getresponse())

    tokens = ask("POST", "/tokenize", {"content": TEXT, "add_special": True, "parse_special": True})["tokens"]
    answer = server.handle_completions({"prompt": tokens, "n_predict": 1, "n_probs": 20, "post_sampling_probs": False})
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    settings = {key: value for key, value in ask("GET", "/props").items() if key not in _ELSEWHERE}
    settings["default_generation_settings"]["params"].pop("seed")
    return {"settings": settings, "tokens": tokens, "likely": [[row["id"], row["logprob"]] for row in likely]}


def printed(log: str) -> list[str]:
    lines = [line for line in re.findall(r"print_info: (\S.*)", log) if not _NAMES.match(line)]
    return [re.sub(" +", " ", line) for line in lines]


def loaded(file: str, log: Path, out: Path) -> dict[str, Any] | None:
    """In a process of its own, since it may crash or hang."""
    out.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            out.write_text(json.dumps(load(file)))
        finally:
            os._exit(0)
    end = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    if not out.exists():
        return None
    return {**json.loads(out.read_text()), "printed": printed(log.read_text(errors="replace"))}


def main(out: str, *files: str) -> None:
    # What does not load is tried twice: a busy machine may be the cause.
    parts = [Path(f"{out}.{part}") for part in ("log", "part")]
    Path(out).write_text(json.dumps({file: loaded(file, *parts) or loaded(file, *parts) for file in files}))


if __name__ == "__main__":
    main(*sys.argv[1:])
