# Everything starts from a bare checkout: `make quickstart` and `make test` set up what they need.
# Paths are quoted and relative, so a checkout may lie under a path with a space in it.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.up-to-date
UV := $(BIN)/uv
# Processes that share the tests: one a core, of one thread each. Each begins with a stretch of its own (worksteal), so
# that what a module's tests share is made in one process.
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow check format lock

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP)  ## create .venv from the locks (nothing to do when it is up to date)

$(STAMP): requirements.lock requirements-parity.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-parity.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

quickstart: setup  ## shards, training, few-shot evaluation and report, in outputs/quickstart
	$(BIN)/flamingo-lite quickstart

test: setup  ## the tests, without those marked slow or gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m "not slow and not gpu"

test-slow: setup  ## all tests that can run on this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: setup  ## style, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -q tests/test_floors.py

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## resolve the dependencies anew
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock
	printf "open-flamingo==2.0.1\nlmms-eval==0.7.3\npycocoevalcap==1.2\nrouge-score==0.1.2\n" | $(UV) pip compile - --no-deps --universal --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --quiet --output-file requirements-parity.lock
