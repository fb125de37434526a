"""Script: llama.cpp's server, as the xllamacpp package has it. python serve_llama_cpp.py FILE CONTEXT THREADS.

It prints its address, and serves until its stdin ends.
"""

from __future__ import annotations

import sys


def main(file: str, context: str, threads: str) -> None:
    """Load the file and serve."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = file, int(context), 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
