# Everything one does with this repository; `make` alone lists it.
# PYTHON=... chooses the interpreter that builds .venv; TESTFLAGS=..., DEMO=..., MUTANTS=... and
# SURVEY=... what is run.

# The first of these that runs: a name on PATH may be a shim with nothing behind it.
PYTHON    ?= $(firstword $(shell for p in python3.11 python3; do \
	       $$p -c "print('$$p')"; done 2>/dev/null) python3)
TESTFLAGS ?= -n 2
DEMO      ?= train --out out/demo --overwrite
MUTANTS   ?=
SURVEY    ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per worker: xdist gives the parallelism, and two pools of threads fight for the cores.
# The limit is per test; it stands here and not in pyproject.toml so that a bare `pytest --pdb` may
# sit at a breakpoint for as long as it likes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout=300 $(TESTFLAGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all bench-lint survey mutants format format-check lint types check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install addnorm into it, with the pinned tools

# pip is what `venv` writes last: where it is missing, .venv is absent or half made.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'addnorm needs Python 3.11 or newer, and "$(PYTHON)" is not.' >&2; \
	  echo 'Name one: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a platform without the pinned build then says so at once, by name.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## train a small GPT (DEMO="schemes": other arguments of the addnorm command)
	$(BIN)/addnorm $(DEMO)

test: setup  ## the tests to run on every change
	$(PYTEST) -m 'not slow'

test-all: setup  ## every test, the slow ones too
	$(PYTEST)

bench-lint: setup  ## measure lint: the faults it finds, its false alarms on correct models
	$(BIN)/python -m benchmarks.lint

survey: setup  ## lint a third of the published architectures; each finding needs a verdict
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.survey --out out/survey $(SURVEY)

mutants: setup  ## break the code in 400 places, and ask the tests (MUTANTS="--only FILE")
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants $(MUTANTS)

format: setup  ## apply ruff's safe fixes and rewrite the code in the house format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

format-check: setup
	$(BIN)/ruff format --check

lint: setup  ## ruff's rules
	$(BIN)/ruff check

types: setup  ## mypy: strict for addnorm, lighter for tests
	$(BIN)/mypy

check: format-check lint types  ## format, lint and types, changing nothing

clean:  ## remove builds and caches; .venv and out/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
