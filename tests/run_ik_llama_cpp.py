"""Script: a GGUF file in ik_llama.cpp, by the ctypes layer of the ik-llama-cpp-python wheel.

python run_ik_llama_cpp.py MODEL TEXT WINDOW OUT

OUT gets the arrays `tokens`, of the text by the file's own tokenizer without BOS, and `losses`, (windows,
WINDOW - 1): the negative natural logarithm of the probability of each token of a window but its first.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ik_llama_cpp import _ctypes_api as ik


def load(file: str) -> int:
    ik.llama_backend_init()
    model: int | None = ik.llama_model_load_from_file(file.encode(), ik.llama_model_default_params())
    if not model:
        raise SystemExit(f"{file} does not load")
    return model


def open_context(model: int, size: int, threads: int = 1) -> int:
    params = ik.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = size
    params.n_threads = params.n_threads_batch = threads
    context: int | None = ik.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("no context")
    return context


def tokenize(model: int, text: bytes) -> npt.NDArray[np.int32]:
    tokens = np.empty(len(text), np.int32)
    room = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    count = ik.llama_tokenize(model, text, len(text), room, len(tokens), False, False)
    if count < 0:
        raise SystemExit("the text has more tokens than bytes")
    return tokens[:count]


def losses(model: int, context: int, window: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    batch = ik.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for index, token in enumerate(window):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
    ik.llama_kv_cache_clear(context)
    if ik.llama_decode(context, batch):
        raise SystemExit("the window could not be decoded")
    vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(ik.llama_get_logits_ith(context, i), (vocabulary,)) for i in range(len(window) - 1)]
    ik.llama_batch_free(batch)
    logits = np.stack(rows).astype(np.float64)
    result: npt.NDArray[np.float64] = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(rows)), window[1:]]
    return result


def main(file: str, text: str, window: str, out: str) -> None:
    size = int(window)
    model = load(file)
    context = open_context(model, size)
    tokens = tokenize(model, Path(text).read_bytes())
    windows = tokens[: len(tokens) // size * size].reshape(-1, size)
    np.savez(out, tokens=tokens, losses=np.stack([losses(model, context, window) for window in windows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
