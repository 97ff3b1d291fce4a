# Everything runs from .venv, which is made on first use from $(PYTHON).
#   make demo       generate text with the model that ships
#   make test       the fast tests          make test-slow / test-peer / test-all  the rest
#   make lint       ruff, mypy, import-linter, stubs, cython-lint, clang-format, layers, warnings of
#                   gcc and clang, shellcheck, GitHub's forms and workflows, codespell
#   make format     bring the code into shape
#   make cross      compile the C code for macOS with zig
#   make sanitize   the tests under ASan + UBSan, those with threads under TSan, the simulated Metal
#   make bench      benchmarks              make clean      remove what was built
# Arguments for pytest: make test PYTEST_ARGS="-k gemv -x"

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST := $(PY) -m pytest
PYTEST_ARGS ?=
# How many processes run the tests; 0 runs them in pytest's own: make test JOBS=0
JOBS ?= auto
PARALLEL = -n $(JOBS) --dist worksteal

SIMULATION := clang-19 lld-19 libclang-rt-19-dev libgnustep-base-dev libblocksruntime-dev
SIMULATION += gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

# Qwen3's vocabulary and chat template, for the peer tests.
QWEN3 := .cache/qwen3

SOURCES := $(wildcard shim/*/*.[chm] shim/*/*/*.[ch] shaders/*.metal oxibonsai/metal/*.pyx \
    oxibonsai/metal/*.pxd) setup.py tools/embed_shaders.py tools/c_flags.py $(wildcard oxibonsai/msl/*.py shaders/*.h)
BUILT := $(VENV)/.built $(VENV)/.installed

.PHONY: demo build test test-slow test-peer test-all
.PHONY: lint lint-ruff lint-mypy lint-imports lint-stubs lint-cython lint-c lint-warnings
.PHONY: lint-shell lint-github lint-spelling format
.PHONY: cross sanitize bench clean
.DELETE_ON_ERROR:

demo: $(BUILT)
	@$(PY) -m oxibonsai generate </dev/null

build: $(BUILT)

test: $(BUILT) $(VENV)/.extra-test $(VENV)/.extra-cuda $(VENV)/.simulation
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(BUILT) $(VENV)/.extra-test
	$(PYTEST) -m slow $(PARALLEL) $(PYTEST_ARGS)

test-peer: $(BUILT) $(VENV)/.extra-test $(VENV)/.extra-peers $(QWEN3)/.installed
	$(PYTEST) -m peer $(PARALLEL) $(PYTEST_ARGS)

test-all: $(BUILT) $(VENV)/.extra-test $(VENV)/.extra-peers $(QWEN3)/.installed
	$(PYTEST) -m "slow or not slow" $(PARALLEL) $(PYTEST_ARGS)

lint: lint-ruff lint-mypy lint-imports lint-stubs lint-cython lint-c lint-warnings
lint: lint-shell lint-github lint-spelling

lint-ruff: $(VENV)/.extra-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Strict for the package and the tools. In tests, which call with wrong types on purpose: imports,
# names and attributes, where a function has annotations.
LENIENT := arg-type assignment call-arg misc return-value annotation-unchecked

lint-mypy: $(BUILT) $(VENV)/.extra-test $(VENV)/.extra-dev
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --config-file= --ignore-missing-imports $(LENIENT:%=--disable-error-code=%) \
	    --explicit-package-bases tests

lint-imports: $(VENV)/.extra-dev
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache

lint-stubs: $(BUILT) $(VENV)/.extra-dev
	$(PY) tools/generate_pxd.py --check && $(PY) tools/generate_stubs.py --check
	$(PY) tools/check_docstrings.py
	$(PY) -m mypy.stubtest --ignore-unused-allowlist \
	    --allowlist tools/stubtest_allowlist.txt oxibonsai.metal

lint-cython: $(VENV)/.extra-dev
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint oxibonsai examples tests

lint-c: $(VENV)/.extra-dev
	$(PY) tools/format_c.py --check
	$(PY) tools/check_layers.py

lint-warnings: $(VENV)/.simulation
	$(PY) tools/c_warnings.py

lint-shell: $(VENV)/.extra-dev
	$(VENV)/bin/shellcheck .ci/run tools/*.sh

# By the schemas that come with the package; nothing is downloaded.
lint-github: $(VENV)/.extra-dev
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms \
	    $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-config \
	    .github/ISSUE_TEMPLATE/config.yml

lint-spelling: $(VENV)/.extra-dev
	$(VENV)/bin/codespell

format: $(VENV)/.extra-dev
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(PY) tools/format_c.py

cross: $(BUILT) $(VENV)/.extra-dev
	$(PY) tools/cross_compile_macos.py

sanitize: $(BUILT) $(VENV)/.extra-test $(VENV)/.simulation
	$(PY) tools/sanitize.py address $(PYTEST_ARGS)
	$(PY) tools/sanitize.py thread $(PYTEST_ARGS)
	$(PY) tools/sanitize.py metal $(PYTEST_ARGS)

bench: $(BUILT) $(VENV)/.extra-bench
	$(PYTEST) benchmarks $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(QWEN3) build dist *.egg-info oxibonsai/include
	rm -f oxibonsai/metal/*.so oxibonsai/metal/*.c oxibonsai/metal/*.metallib
	find oxibonsai tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The virtual environment with what the build needs, so that a rebuild downloads nothing.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed, $(PYTHON) is not: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: install the system package python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; \
	    sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || \
	    { echo "The headers of $(PYTHON) are missing: install the system package python3-dev" >&2; exit 1; }
	@echo "Making $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=77' 'Cython>=3.1'
	@touch $@

# Each source is compiled once: the editable install after it finds all modules up to date. Bytecode
# is written for what is imported, when it is.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	@echo "Compiling the extension modules of oxibonsai" >&2
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.built
	@echo "Installing oxibonsai into $(VENV)" >&2
	@$(PIP) --no-build-isolation --editable '.[model]'
	@touch $@

# An extension module that is gone is built again, whatever the stamps say.
ifeq ($(wildcard oxibonsai/metal/_core*.so),)
.PHONY: $(VENV)/.built
endif

# What runs the Metal driver and its kernels on Linux, and the cpu's kernels for Arm. Without it their tests are skipped and say so.
$(VENV)/.simulation: $(VENV)/.made
	@missing=$$(for p in $(SIMULATION); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then :; \
	elif [ "$$(id -u)" -ne 0 ]; then \
	    echo "To test the Metal driver and the kernels for Arm too: sudo apt-get install $$missing" >&2; \
	else \
	    echo "Installing" $$missing >&2; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        --no-install-recommends $$missing; } >$(VENV)/simulation.log 2>&1 || \
	        { cat $(VENV)/simulation.log >&2; exit 1; }; \
	fi
	@touch $@

# oxibonsai is installed by then, so this adds the packages of one extra and builds nothing.
$(VENV)/.extra-%: $(VENV)/.installed
	@echo "Installing the packages of oxibonsai[$*]" >&2
	@$(PIP) 'oxibonsai[$*]'
	@touch $@

# The wheels of the peers first, in a folder: .ci/run makes them while tests run in $(VENV).
$(VENV)/.wheels-peers: $(VENV)/.installed
	@echo "Building the wheels of oxibonsai[peers]" >&2
	@$(PY) -c 'from importlib.metadata import requires; \
	    print(*[r.split(";")[0] for r in requires("oxibonsai") if "peers" in r], sep="\n")' >$(VENV)/peers.txt
	@$(PY) -m pip wheel --quiet --wheel-dir $(VENV)/wheels --requirement $(VENV)/peers.txt
	@touch $@

$(VENV)/.extra-peers: $(VENV)/.wheels-peers
	@echo "Installing the packages of oxibonsai[peers]" >&2
	@$(PIP) --find-links $(VENV)/wheels 'oxibonsai[peers]'
	@touch $@

# libllama alone: without the command-line helpers and the image models, in less than half the time.
# Not for this very processor: pip keeps the wheel.
$(VENV)/.wheels-peers: export CMAKE_ARGS = -DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF \
    -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tools/llama_lean.cmake
$(VENV)/.wheels-peers: export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

# What the lock file names, checked by its digests. Without npm the tests that need it are skipped and
# say so; where peers are required, they fail.
$(QWEN3)/.installed: tests/peers/package.json tests/peers/package-lock.json
	@if ! command -v npm >/dev/null; then \
	    echo "To compare with Qwen3's own vocabulary too, install npm" >&2; \
	else \
	    echo "Installing Qwen3's vocabulary into $(QWEN3)" >&2; \
	    mkdir -p $(QWEN3) && cp $^ $(QWEN3) && \
	    npm ci --prefix $(QWEN3) --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null && \
	    touch $@; \
	fi
