"""Script: ik_llama.cpp, by the ctypes layer of the ik-llama-cpp-python package, asked by lines of JSON on stdin.

python answer_ik_llama_cpp.py FILE CONTEXT THREADS

{"text": TEXT} is answered with the ids of its tokens, {"ids": [...], "top": N} with pairs of an id and the natural
logarithm of its probability, the likeliest first. An answer is JSON behind "answer: ", since the runner prints lines of
its own. It ends where stdin does.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np


def main(file: str, context_size: str, threads: str) -> None:
    """Load the file and answer."""
    from ik_llama_cpp import _ctypes_api as ik

    ik.llama_backend_init()
    model = ik.llama_model_load_from_file(file.encode(), ik.llama_model_default_params())
    params = ik.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = int(context_size)
    params.n_threads = params.n_threads_batch = int(threads)
    context = ik.llama_init_from_model(model, params) if model else None
    if not context:
        raise SystemExit("failed to load the model")
    print('answer: "ready"', flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "text" in question:
            answer: Any = _tokens(ik, model, question["text"].encode())
        else:
            answer = _likeliest(ik, model, context, question["ids"], question["top"])
        print(f"answer: {json.dumps(answer)}", flush=True)


def _tokens(ik: Any, model: Any, text: bytes) -> list[int]:
    tokens = np.empty(len(text) + 8, np.int32)
    room = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    count = ik.llama_tokenize(model, text, len(text), room, len(tokens), False, False)
    return [int(token) for token in tokens[: max(count, 0)]]


def _likeliest(ik: Any, model: Any, context: Any, ids: list[int], top: int) -> list[tuple[int, float]]:
    batch = ik.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, index == len(ids) - 1
    ik.llama_kv_cache_clear(context)
    if ik.llama_decode(context, batch):
        raise SystemExit("failed to compute")
    vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(ik.llama_get_logits_ith(context, len(ids) - 1), (vocabulary,)).astype(np.float64)
    ik.llama_batch_free(batch)
    logs = logits - np.logaddexp.reduce(logits)
    return [(int(token), float(logs[token])) for token in np.argsort(-logs)[:top]]


if __name__ == "__main__":
    main(*sys.argv[1:])
