"""Script: a GGUF file in llama.cpp, as the xllamacpp wheel brings it.

python run_llama_cpp.py MODEL TEXT WINDOW POSITIONS OUT, POSITIONS being comma-separated indices into the tokens.

OUT gets the arrays `tokens`, of the text by the file's own tokenizer without BOS, and `log_probabilities`,
(positions, vocabulary): row i is for the token after the one at position i, given its window up to it.
"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import xllamacpp


def start(model: str, context: int) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def tokenize(server: xllamacpp.Server, text: str) -> npt.NDArray[np.int32]:
    connection = HTTPConnection(urlsplit(server.listening_address).netloc)
    connection.request("POST", "/tokenize", json.dumps({"content": text, "add_special": False}))
    return np.array(json.load(connection.getresponse())["tokens"], np.int32)


def log_probabilities(server: xllamacpp.Server, prompt: npt.NDArray[np.int32], chosen: int) -> npt.NDArray[np.float32]:
    """Of every token after a prompt, from the logits: before any sampler has changed them.

    chosen: the token that is made to come, of whole characters: after others nothing comes back.
    """
    vocabulary = 1 << 20  # more than any: all of it comes back
    answer = server.handle_completions(
        {
            "prompt": prompt.tolist(),
            "n_predict": 1,
            "logit_bias": [[chosen, 1e6]],
            "n_probs": vocabulary,
            "post_sampling_probs": False,
        }
    )
    tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    row = np.full(len(tokens), np.nan, np.float32)
    for token in tokens:
        row[token["id"]] = token["logprob"]
    return row


def main(model: str, text: str, window: str, positions: str, out: str) -> None:
    size = int(window)
    server = start(model, 2 * size)
    tokens = tokenize(server, Path(text).read_text())
    prompts = (tokens[at // size * size : at + 1] for at in map(int, positions.split(",")))
    rows = [log_probabilities(server, prompt, int(tokens[0])) for prompt in prompts]
    np.savez(out, tokens=tokens, log_probabilities=np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
