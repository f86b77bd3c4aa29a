# Two commands do everything:  make demo   and   make test
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# Set PIP_FLAGS for a mirror of your own; TORCH=1 adds torch and its tests.
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
TORCH  ?=
# Processes that share the tests; JOBS=0 runs them in one.
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4)))
SHARED  = -n $(JOBS) --dist worksteal

CORE  = $(VENV)/.core
DEV   = $(VENV)/.dev
WITH_TORCH = $(VENV)/.torch
NEEDS = $(DEV) $(if $(filter 1,$(TORCH)),$(WITH_TORCH))

.PHONY: help demo test check check-full bench docs clean

help:
	@echo "make demo        set up, and run the main job on the embedded model (offline, under a minute)"
	@echo "make test        set up, and run the tests (TORCH=1: with torch; JOBS=N: N at once)"
	@echo "make check       formatting, lint, types, layers, then make test"
	@echo "make check-full  make check with the tests that take minutes"
	@echo "make bench       every benchmark that docs/benchmarks.md shows"
	@echo "make docs        rewrite what is generated from the code"

$(CORE): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; set PYTHON to a Python of 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEV): $(CORE)
	$(PIP) -e ".[dev,images]"
	@touch $@

$(WITH_TORCH): $(DEV)
	$(PIP) -e ".[torch]"
	@touch $@

demo: $(CORE)
	$(BIN)/fewbits demo

test: $(NEEDS)
	$(BIN)/python -m pytest $(SHARED) -m "not slow" $(PYTEST_FLAGS)

check: $(NEEDS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test TORCH=$(TORCH)

check-full: $(NEEDS)
	$(MAKE) check TORCH=$(TORCH)
	$(BIN)/python -m pytest $(SHARED) -m slow $(PYTEST_FLAGS)

bench: $(DEV)
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(DEV)
	$(BIN)/python -m fewbits.reporting.schema docs/report.schema.json
	$(BIN)/python tests/docs/refresh.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info fewbits-demo
