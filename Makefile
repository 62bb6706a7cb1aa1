# The contributor's manual: `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCE ?=
ENGINE ?= llama.cpp
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup demo demo-mirror test bench oracle check format clean

help:  ## Show what can be made
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make the virtual environment .venv with everything in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs,llama-cpp]'
	@touch $@

demo: $(STAMP)  ## Pack a real model, push, sign, pull by digest, verify, serve, ask it (ENGINE=vllm-cpu, SOURCE=hf://ORG/NAME or a folder)
	@$(BIN)/python docs/examples/demo.py --engine '$(ENGINE)' $(if $(SOURCE),--source '$(SOURCE)')

demo-mirror: $(STAMP)  ## A signed model through another registry and back: ours -> docker-registry -> ours
	@$(BIN)/python docs/examples/demo_mirror.py $(if $(SOURCE),--source '$(SOURCE)')

test: $(STAMP)  ## Run all tests (PYTEST_ARGS="-k name" for some)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(STAMP)  ## Measure everything against others on PATH, and draw it (BENCH_ARGS="--size 64 --rounds 2" for a quick look)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.conversion
	$(BIN)/python -m benchmarks.transfers
	$(BIN)/python -m benchmarks.audit
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.plot

oracle: $(STAMP)  ## Compare conversion with llama.cpp's own converter and transformers (builds .cache/oracle, needs torch)
	$(BIN)/python -m tests.packager.convert.oracle setup
	$(BIN)/python -m pytest tests/packager/convert -m oracle

check: $(STAMP)  ## Lint, types, import contract, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

format: $(STAMP)  ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and builds
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
