# The words a person types. Each does all its own set-up; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV = $(or $(shell scripts/bootstrap.sh),$(error the set-up failed: see above))
RUN = $(UV) run --frozen
PHASE = scripts/phase.sh
# Python of vLLM's own environment, which is made when it is asked for.
VLLM = $(shell $(RUN) arctic cluster environment vllm)/bin/python3

.PHONY: help setup setup-local setup-engines demo test lint types contracts unit kernels processes cluster-tests chaos fuzz soak parity test-parity test-clients test-engines bench bench-gpu bench-gpu-bundle gpu-tests clean format

# Where it is set, each process compiles all of our code anew, and pytest rewrites all tests.
export PYTHONDONTWRITEBYTECODE =

# Of the long campaigns: `make chaos SEED=7 FAULTS=50`.
SEED ?= 1
FAULTS ?= 200
MANIFESTS ?= 10000
REQUESTS ?= 5000

help: ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' Makefile

setup-local: ## environment and corpus: all that `arctic train` and `arctic serve` need (done once)
	@UV_COMPILE_BYTECODE=1 $(PHASE) environment $(UV) sync --frozen  # else each process compiles torch anew
	@$(PHASE) corpus $(RUN) arctic corpus

setup: setup-local ## the same, and cluster binaries and base image (done once, kept in the cache)
	@$(PHASE) binaries $(RUN) arctic cluster build

setup-engines: ## environments of the engines that have one of their own: vLLM's CPU build (done once, kept in the cache)
	@$(PHASE) engine-environments $(RUN) arctic cluster environment vllm

demo: setup ## train and serve a small Arctic on a two-node cluster on this machine, and a real model beside it
	@$(RUN) arctic demo

test: setup ## lint, types, import contracts, tests of units, of processes and on a cluster
	@$(PHASE) lint $(MAKE) --no-print-directory lint
	@$(PHASE) types $(MAKE) --no-print-directory types
	@$(PHASE) contracts $(MAKE) --no-print-directory contracts
	@$(PHASE) unit-tests $(MAKE) --no-print-directory unit
	@$(PHASE) kernel-tests $(MAKE) --no-print-directory kernels
	@$(PHASE) process-tests $(MAKE) --no-print-directory processes
	@$(PHASE) cluster-tests $(MAKE) --no-print-directory cluster-tests

lint:
	@$(RUN) ruff check . && $(RUN) ruff format --check .

types:
	@$(RUN) mypy && $(RUN) mypy benchmarks tests/support/*.py tests/cluster/*.py tests/parity/test_*.py tests/clients/test_*.py tests/engines/cluster/*.py tests/kernels/*.py tests/gpu/*.py

contracts:
	@$(RUN) lint-imports --no-cache

unit:
	@$(RUN) pytest -n 2 --dist loadfile -m 'not processes' tests/unit

kernels:
	@TRITON_INTERPRET=1 $(RUN) pytest -n 2 --dist loadfile tests/kernels

processes:
	@$(RUN) pytest -n 2 --dist loadfile -m processes tests/unit

cluster-tests:
	@$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder tests/cluster

chaos: setup ## inflict faults on the operator and the cluster under it, long (20 minutes)
	@$(RUN) pytest -q tests/cluster/test_chaos.py --faults $(FAULTS) --seed $(SEED)

fuzz: setup-local ## show the operator ten thousand manifests, half of them right, long (5 minutes)
	@$(RUN) pytest -q -s tests/unit/arctic_operator/test_any_manifest.py --manifests $(MANIFESTS) --seed $(SEED)

soak: setup ## send an inference group good, bad and broken-off requests, and compare each answer's bits, long (10 minutes)
	@$(RUN) pytest -q tests/unit/arctic_workers/inference -k 'traffic or mixed' --requests $(REQUESTS) --seed $(SEED)

parity test-parity: setup ## compare the model with llama.cpp, in an environment of its own (builds it once: minutes)
	@$(RUN) pytest tests/parity

test-clients: setup ## lm-eval, unchanged, in an environment of its own (makes it once: a minute), against a group; peft, against our adapters; our judges against the harnesses; MLflow's and Weights & Biases' own stores
	@$(RUN) pytest tests/clients
	@$(RUN) --isolated --extra mlflow --extra wandb pytest tests/unit/arctic_workers/training/test_tracking.py

test-engines: setup setup-engines ## one suite for every engine: in vLLM's own environment, as groups on a local cluster, TensorRT-LLM's launch, LeaderWorkerSets, Kueue
	@$(PHASE) vllm $(VLLM) -m pytest tests/engines/vllm
	@$(PHASE) conformance $(RUN) pytest tests/engines/cluster
	@$(PHASE) tensorrt-llm $(RUN) pytest tests/engines/tensorrt_llm
	@$(PHASE) peers $(RUN) pytest tests/cluster/test_lws.py tests/cluster/test_kueue.py --peers

bench: setup setup-engines ## every benchmark, whole (three hours): prints its tables, keeps its figures in benchmarks/RESULTS.md
	@$(RUN) python -m benchmarks.ablation --keep
	@$(RUN) python -m benchmarks.chaos --keep
	@$(RUN) python -m benchmarks.demo --keep
	@$(RUN) python -m benchmarks.endless --keep
	@$(RUN) python -m benchmarks.faults_training --keep
	@$(RUN) python -m benchmarks.fine_tuning --keep
	@$(RUN) python -m benchmarks.overlap --keep
	@$(RUN) python -m benchmarks.pipeline --keep
	@$(RUN) python -m benchmarks.planner --keep
	@$(RUN) python -m benchmarks.reconcile --keep  # needs root
	@$(RUN) python -m benchmarks.recovery --keep  # needs root
	@$(RUN) python -m benchmarks.rollout --keep  # needs root
	@$(RUN) python -m benchmarks.serving --keep
	@$(RUN) python -m benchmarks.soak --keep
	@$(RUN) python -m benchmarks.split_fuse --keep
	@$(RUN) python -m benchmarks.suffix_decoding --keep
	@$(RUN) python -m benchmarks.training --keep
	@$(RUN) python -m benchmarks.upcycling --keep

bench-gpu: ## measure this machine's GPU, training and inference on it, in 8 minutes; without a GPU says so and exits 2
	@scripts/on_gpu.sh -m benchmarks.gpu

bench-gpu-bundle: ## gather in .gpu-bundle what that takes on a machine with Python 3.12, torch and Triton, and no network
	@$(RUN) python scripts/gpu_bundle.py

gpu-tests: ## what only a GPU can show, on this machine's; skipped without one
	@scripts/on_gpu.sh -m pytest tests/gpu

format: ## rewrite the code in the house's format
	@$(RUN) ruff check --fix . ; $(RUN) ruff format .

clean: ## end this machine's clusters and remove what they left (volumes and caches stay)
	@$(RUN) arctic cluster down --all
