# make demo: set up, convert a bundled checkpoint, verify the file, let it speak.   make test: set up, lint, all tests.
# make dev: an editable build with all that the tests need; after a change in kernels/, make it again.
PYTHON ?= python3
CMAKE ?= cmake
CXX_AARCH64 ?= aarch64-linux-gnu-g++
QEMU_AARCH64 ?= qemu-aarch64 -L /usr/aarch64-linux-gnu

BIN := .venv/bin
BUILD := pyproject.toml tests/constraints.txt $(shell find kernels -type f)
DEMO_MODEL := fixtures/bitnet-b1.58-2B-4T-tiny
# One thread a process, since there is a process for each core.
PYTEST := pytest -n auto --dist worksteal
test test-quick test-lowest: export OMP_NUM_THREADS := 1
# Compiled bytecode is kept, as users have it: without it most of what a short command takes is compiling.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dev test test-quick test-lowest lint docs wheel wheel-aarch64 bench bench-quick fuzz test-aarch64 test-avx512 test-sanitize clean

demo: .venv/installed
	$(BIN)/bitconv convert --force $(DEMO_MODEL) demo.gguf
	$(BIN)/bitconv verify demo.gguf --against $(DEMO_MODEL)
	$(BIN)/bitconv generate demo.gguf -p 'The city of' -n 24

dev: .venv/dev

test: lint
	$(BIN)/$(PYTEST)

# Without what is slow, needs PyTorch or runs real runners.
test-quick: .venv/dev
	$(BIN)/$(PYTEST) -m 'not slow and not torch and not runners'

# What needs neither PyTorch nor real runners, with the lowest versions that pyproject.toml declares.
test-lowest: build/lowest/installed
	build/lowest/bin/$(PYTEST) -m 'not torch and not runners'

lint: .venv/dev
	$(BIN)/ruff check bitconv tests
	$(BIN)/ruff format --check bitconv tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site of docs/, into build/site.
docs: .venv/dev
	$(EDITABLE) '.[docs]'
	touch bitconv/_kernels.*.so .venv/installed .venv/dev
	$(BIN)/zensical build --strict --config-file .mkdocs.yml

# A wheel and an sdist in build/dist, and the wheel at work in an environment where nothing is built.
wheel:
	rm -rf build/dist
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/pip install --quiet build
	build/wheel/bin/python -m build --outdir build/dist .
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/pip install --quiet --only-binary :all: build/dist/*.whl
	PATH="$(CURDIR)/build/wheel/bin:$$PATH" tests/wheel.sh

# A wheel for arm64, built here and at work under qemu-user. On Debian, whose Python must be of PYTHON's version.
ARM64 := $(CURDIR)/build/wheel-aarch64
QEMU_ARM64_PYTHON := qemu-aarch64 -L $(ARM64)/root $(ARM64)/root/usr/bin/python3
wheel-aarch64:
	rm -rf $(ARM64)
	mkdir -p $(ARM64)/bin
	. /etc/os-release && mmdebstrap --quiet --architectures=arm64 --variant=extract --include=python3,libstdc++6 \
		$$VERSION_CODENAME $(ARM64)/root
	SETUPTOOLS_EXT_SUFFIX=$$($(QEMU_ARM64_PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))') \
		_PYTHON_HOST_PLATFORM=linux-aarch64 CXX=$(CXX_AARCH64) \
		CMAKE_ARGS='-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64' \
		$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(ARM64) .
	$(PYTHON) -m pip install --quiet --only-binary :all: --target $(ARM64)/site --platform linux_aarch64 \
		--platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 $(ARM64)/*.whl
	printf '#!/bin/sh\nPYTHONPATH=%s exec %s -m bitconv "$$@"\n' '$(ARM64)/site' '$(QEMU_ARM64_PYTHON)' >$(ARM64)/bin/bitconv
	chmod +x $(ARM64)/bin/bitconv
	PATH="$(ARM64)/bin:$$PATH" tests/wheel.sh

# In BITCONV_BENCH_DIR or the system's temporary directory: 14 GB and 20 minutes, or 3 GB and a minute.
# bench writes docs/bench.md and its chart, bench-quick prints a smaller page.
bench: .venv/dev
	cd tests && ../$(BIN)/python -m bench

bench-quick: .venv/dev
	cd tests && ../$(BIN)/python -m bench --quick

# Mutated files of every kind, FUZZ_SECONDS for each: by atheris where there is a wheel of it.
FUZZ_SECONDS ?= 60
fuzz: .venv/dev
	-$(BIN)/pip install --quiet atheris
	cd tests && ../$(BIN)/python -m fuzz $(FUZZ_SECONDS)

# The kernels' own tests, without Python: NEON under qemu-user, AVX-512 emulated by SIMDe, AMX and AVX-VNNI by plain code.
test-aarch64:
	$(CMAKE) -S kernels -B build/aarch64 -DBITCONV_KERNEL_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CXX_AARCH64)
	$(CMAKE) --build build/aarch64 --parallel
	$(QEMU_AARCH64) build/aarch64/kernels_test neon neon_dotprod neon_i8mm

test-avx512:
	$(CMAKE) -S kernels -B build/avx512 -DBITCONV_KERNEL_TESTS=ON -DBITCONV_EMULATE=ON
	$(CMAKE) --build build/avx512 --parallel
	build/avx512/kernels_test avx_vnni avx512 avx512_vnni avx512_amx

# The same test under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitize:
	$(CMAKE) -S kernels -B build/sanitize -DBITCONV_KERNEL_TESTS=ON \
		-DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
	$(CMAKE) --build build/sanitize --parallel
	build/sanitize/kernels_test

# The editable build has no environment of its own: in each new one all objects would be compiled again. What the
# system's cmake and ninja lack comes from PyPI, as the build backend says.
BACKEND := from scikit_build_core.build import get_requires_for_build_editable as needed; print(*needed())
PIP := $(BIN)/pip install --quiet --no-compile --constraint tests/constraints.txt
.venv/build.txt: $(BUILD)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^requires = \[/,/^\]/s/^ *"\([^"]*\)".*/\1/p' pyproject.toml >$@.new
	$(PIP) --requirement $@.new
	needed=$$($(BIN)/python -c '$(BACKEND)') && { test -z "$$needed" || $(PIP) $$needed; }
	mv $@.new $@

EDITABLE := $(PIP) --no-build-isolation --editable
.venv/installed: .venv/build.txt
	$(EDITABLE) '.[eval]'
	touch bitconv/_kernels.*.so $@

.venv/dev: .venv/build.txt
	$(EDITABLE) '.[test]'
	touch bitconv/_kernels.*.so .venv/installed $@

# The lowest versions that pyproject.toml declares, of what is built with too, and bitconv as a wheel.
build/lowest/installed: .venv/dev tests/lowest.py
	$(BIN)/python -m venv --clear build/lowest
	$(BIN)/python tests/lowest.py >build/lowest/versions.txt
	build/lowest/bin/pip install --quiet --no-compile --requirement build/lowest/versions.txt
	build/lowest/bin/pip install --quiet --no-compile --no-build-isolation --no-deps --force-reinstall .
	touch $@

clean:
	rm -rf .venv build demo.gguf
