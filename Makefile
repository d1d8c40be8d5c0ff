# Every target works from a fresh clone: it creates .venv and installs what it needs, once.
#   make demo PIP_ARGS="..."      extra arguments for pip (an index, a proxy, a wheel folder)
#   make test PYTHON=python3.12   the Python that .venv is made from (3.10 or newer)
#   make test JOBS=4              test processes (default 2)

PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
BIN := .venv/bin
INSTALLED := pyproject.toml constraints.txt scripts/setup.sh

# The same text encoding and one math thread per process, whatever the machine's locale and core count.
ENV := PYTHONUTF8=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

demo: .venv/.installed-lab ## train a small language model with six optimizers, write the report (about 10 minutes)
	@echo "demo: steepest compare --preset demo"
	@PYTHONUTF8=1 $(BIN)/steepest compare --preset demo

test: .venv/.installed-dev lint ## linters, type checker and the whole test suite
	@echo "test: pytest, $(JOBS) processes"
	@$(ENV) $(BIN)/python -m pytest -n $(JOBS)

lint: .venv/.installed-dev ## ruff check, ruff format --check, mypy --strict
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "lint: mypy --strict"
	@PYTHONUTF8=1 $(BIN)/mypy

bench: .venv/.installed-dev ## step time and memory against other optimizers, tables in docs/results (about 10 minutes)
	@echo "bench: step time"
	@PYTHONUTF8=1 $(BIN)/python benchmarks/step_time.py --out docs/results/step_time.json
	@echo "bench: peak memory of one step"
	@PYTHONUTF8=1 $(BIN)/python benchmarks/memory.py --out docs/results/memory.json

docs: .venv/.installed-dev ## check the links and run the examples in README, CONTRIBUTING, docs and docstrings
	@echo "docs: links and examples"
	@$(ENV) $(BIN)/python -m pytest tests/test_docs.py -v

clean: ## remove caches and build output (keeps .venv, runs and downloaded data)
	@echo "clean: caches and build output"
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage lightning_logs
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

.venv/.installed-%: $(INSTALLED)
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" sh scripts/setup.sh $*
