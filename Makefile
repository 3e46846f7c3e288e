# The words a person types. Each does all its own set-up; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV = $(or $(shell scripts/bootstrap.sh),$(error the set-up failed: see above))
RUN = $(UV) run --frozen
PHASE = scripts/phase.sh
# Compiled once: else each of the many processes that the tests start compiles torch and DeepSpeed anew.
export UV_COMPILE_BYTECODE = 1

.PHONY: help setup demo test lint types contracts unit cluster-tests test-parity clean format

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## environment, cluster binaries, base image, corpus (done once, kept in the cache)
	@$(PHASE) environment $(UV) sync --frozen --quiet
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

test-parity: setup ## compare the model with llama.cpp, in an environment of its own (builds it once: minutes)
	@$(RUN) pytest tests/parity

format: ## rewrite the code in the house's format
	@$(RUN) ruff check --fix . ; $(RUN) ruff format .

clean: ## stop the demo's cluster and remove what it left (the cache stays)
	@$(RUN) arctic cluster down
