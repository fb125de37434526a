# make demo: set up, convert a bundled checkpoint, verify the file.   make test: set up, lint, all tests.
PYTHON ?= python3
CMAKE ?= cmake
CXX_AARCH64 ?= aarch64-linux-gnu-g++
QEMU_AARCH64 ?= qemu-aarch64 -L /usr/aarch64-linux-gnu

BIN := .venv/bin
SOURCES := pyproject.toml $(shell find bitconv kernels -type f -not -name '*.pyc')
DEMO_MODEL := fixtures/bitnet-b1.58-2B-4T-tiny

.PHONY: demo test lint bench bench-quick test-aarch64 test-avx512 test-sanitize clean

demo: .venv/installed
	$(BIN)/bitconv convert --force $(DEMO_MODEL) demo.gguf
	$(BIN)/bitconv verify demo.gguf --against $(DEMO_MODEL)

test: .venv/tested lint
	$(BIN)/pytest

lint: .venv/tested
	$(BIN)/ruff check bitconv tests
	$(BIN)/ruff format --check bitconv tests
	$(BIN)/mypy

# In BITCONV_BENCH_DIR or the system's temporary directory: 14 GB and 20 minutes, or 3 GB and a minute.
# bench writes docs/bench.md and its chart, bench-quick prints a smaller page.
bench: .venv/benched
	cd tests && ../$(BIN)/python -m bench

bench-quick: .venv/benched
	cd tests && ../$(BIN)/python -m bench --quick

# The kernels' own tests, without Python: NEON under qemu-user, AVX-512 emulated by SIMDe.
test-aarch64:
	$(CMAKE) -S kernels -B build/aarch64 -DBITCONV_KERNEL_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CXX_AARCH64)
	$(CMAKE) --build build/aarch64 --parallel
	$(QEMU_AARCH64) build/aarch64/kernels_test neon neon_dotprod

test-avx512:
	$(CMAKE) -S kernels -B build/avx512 -DBITCONV_KERNEL_TESTS=ON -DBITCONV_EMULATE_AVX512=ON
	$(CMAKE) --build build/avx512 --parallel
	build/avx512/kernels_test avx512 avx512_vnni

# The same test under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitize:
	$(CMAKE) -S kernels -B build/sanitize -DBITCONV_KERNEL_TESTS=ON \
		-DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
	$(CMAKE) --build build/sanitize --parallel
	build/sanitize/kernels_test

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint tests/constraints.txt .
	touch $@

.venv/tested: .venv/installed tests/constraints.txt
	$(BIN)/pip install --quiet --constraint tests/constraints.txt '.[test]'
	touch $@

.venv/benched: .venv/installed tests/constraints.txt
	$(BIN)/pip install --quiet --constraint tests/constraints.txt '.[bench]'
	touch $@

clean:
	rm -rf .venv build demo.gguf
