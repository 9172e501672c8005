# `make quickstart` and `make test` need nothing but Python ≥ 3.11; they make .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AXOLOTL := .venv-axolotl
TRL := .venv-trl
TRL_VERSIONS ?= 1.9.0 1.10.0 1.11.0 1.12.0 1.13.0 1.14.0 1.15.0 1.16.0
AXOLOTL_PINS := tests/integrations/axolotl_requirements.txt
# One torch thread a test worker: the workers share the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2
# The benchmarks alone use the cores.
BENCH_THREADS ?= 2

.PHONY: help quickstart install install-dev install-bench test lint format types pytest bench bench-long bench-steps bench-full bench-gpu gpu gpu-wheels gpu-rehearse papers papers-quick models axolotl trl-versions wheel wheel-check clean

help:
	@echo "make quickstart   install into .venv and train the embedded tiny model (a minute on a CPU)"
	@echo "make test         lint, types, tests, and the GPU script rehearsed"
	@echo "make lint         ruff, mypy, imports      make pytest   the tests alone"
	@echo "make format       ruff, in place           make types    mypy alone"
	@echo "make install      .venv with prefkit       make install-dev   and what the tests need"
	@echo "make bench        the benchmarks that fit a CPU, 10 minutes at most, beside the peers"
	@echo "make bench-long   one pair of 1024 + 1024 tokens, a quarter of an hour"
	@echo "make bench-steps  whole optimiser steps beside TRL, rows from 1k to 32k tokens, plans beside runs"
	@echo "make bench-full   every peer at every CPU size     make bench-gpu   the full set on a GPU"
	@echo "make gpu          everything one GPU can tell in nine minutes, most valuable first"
	@echo "make gpu-rehearse every line of it on a CPU     make gpu-wheels   the peers, for a machine without a network"
	@echo "make papers       the four papers' methods compared in miniature; writes docs/papers.md (an hour and a half)"
	@echo "make papers-quick its machinery in five minutes; writes prefkit-output/papers-quick/papers.md"
	@echo "make models       every causal model of transformers against plain logits (minutes); writes docs/models.md"
	@echo "make wheel        source archive and wheel in dist/, their metadata checked"
	@echo "make wheel-check  and the wheel in an empty environment: README's loop, the demo, types (downloads torch)"
	@echo "make axolotl      the plugin of axolotl in real runs of axolotl, in an environment of its own (3 GB)"
	@echo "make trl-versions   the trainer of TRL with each of TRL's versions, in an environment of its own"
	@echo "make clean        remove .venv and caches"

quickstart: install
	$(BIN)/prefkit demo

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-bench: $(VENV)/.installed-bench

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: nothing installed later may replace it.
$(VENV)/.installed: $(BIN)/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The peers that the benchmarks measure; without them the tables show a dash and the reason.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

test: lint pytest gpu-rehearse

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:kernels/torch-ext $(BIN)/lint-imports --no-cache

types: install-dev
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pytest: install-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 15

bench: install-bench
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.run --minutes 10

bench-long: install-bench
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.run --long

bench-steps: install-bench
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.whole_step
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.long_rows
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.trl_step
	$(BIN)/python -m benchmarks.plan_vs_measured

bench-full: install-bench
	OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m benchmarks.run --full

# From a checkout without an installation: PYTHONPATH=.:kernels/torch-ext python -m benchmarks.run --gpu
bench-gpu: install-bench
	$(BIN)/python -m benchmarks.run --gpu

# Likewise: PYTHONPATH=.:kernels/torch-ext python3 -m benchmarks.gpu
gpu: install-bench
	$(BIN)/python -m benchmarks.gpu

gpu-wheels: install-dev
	$(BIN)/python -m benchmarks.gpu.wheels

gpu-rehearse: install-dev
	$(TEST_ENV) $(BIN)/python -m benchmarks.gpu --rehearse

# Two processes of one thread each; interrupted, it goes on where it stopped. Keep the machine idle.
papers: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.papers

papers-quick: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.papers --quick --fresh

# Every type in a process of its own; --types and --lora narrow and change it.
models: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.models --all --write docs/models.md

# The wheel is built from the source archive, so both are tried.
wheel: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

wheel-check: wheel
	$(PYTHON) -m tests.package.installed dist
# axolotl's pins are not ours. Without its requirements: most are not imported, see the pins.
$(AXOLOTL)/.installed: $(AXOLOTL_PINS) pyproject.toml setup.py
	$(PYTHON) -m venv $(AXOLOTL)
	$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check -c $(AXOLOTL_PINS) torch
	$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check -r $(AXOLOTL_PINS)
	$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps axolotl==0.19.0
	$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check -c $(AXOLOTL_PINS) -e .
	@touch $@

axolotl: install-dev $(AXOLOTL)/.installed
	PREFKIT_AXOLOTL=$(AXOLOTL) $(BIN)/python -m pytest -n 0 tests/integrations/test_axolotl.py

# One environment, in which TRL alone changes. Every version is tried, also after one that fails.
$(TRL)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

trl-versions: $(TRL)/.installed
	@failed=; for version in $(TRL_VERSIONS); do echo "TRL $$version"; \
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps trl==$$version && \
	$(TEST_ENV) $(TRL)/bin/python -m pytest -n $(WORKERS) tests/integrations/trl || failed="$$failed $$version"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) $(AXOLOTL) $(TRL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
