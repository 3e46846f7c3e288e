# The words a person types. Each does all its own set-up; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV = $(or $(shell scripts/bootstrap.sh),$(error the set-up failed: see above))
RUN = $(UV) run --frozen
PHASE = scripts/phase.sh

.PHONY: help setup demo test lint types contracts unit cluster-tests parity test-parity bench clean format

help: ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' Makefile

setup: ## environment, cluster binaries, base image, corpus (done once, kept in the cache)
	@UV_COMPILE_BYTECODE=1 $(PHASE) environment $(UV) sync --frozen --quiet  # else each process compiles torch anew
	@$(PHASE) binaries $(RUN) arctic cluster build
	@$(PHASE) corpus $(RUN) arctic corpus

demo: setup ## train and serve a small Arctic on a two-node cluster on this machine
	@$(RUN) arctic demo

test: setup ## lint, types, import contracts, unit tests, cluster tests
	@$(PHASE) lint $(MAKE) --no-print-directory lint
	@$(PHASE) types $(MAKE) --no-print-directory types
	@$(PHASE) contracts $(MAKE) --no-print-directory contracts
	@$(PHASE) unit-tests $(MAKE) --no-print-directory unit
	@$(PHASE) cluster-tests $(MAKE) --no-print-directory cluster-tests

lint:
	@$(RUN) ruff check . && $(RUN) ruff format --check .

types:
	@$(RUN) mypy

contracts:
	@$(RUN) lint-imports --no-cache

unit:
	@$(RUN) pytest -n 2 --dist loadfile tests/unit

cluster-tests:
	@$(RUN) pytest tests/cluster

parity test-parity: setup ## compare the model with llama.cpp, in an environment of its own (builds it once: minutes)
	@$(RUN) pytest tests/parity

bench: ## every benchmark, whole (an hour): prints its tables and figures
	@$(RUN) python -m benchmarks.demo

format: ## rewrite the code in the house's format
	@$(RUN) ruff check --fix . ; $(RUN) ruff format .

clean: ## stop the demo's cluster and remove what it left (the cache stays)
	@$(RUN) arctic cluster down
