# The one door: make help. Everything happens in .venv, made by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/	/' | expand -t 12

install: .venv/installed  ## make .venv and install semiseg and its tools into it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## train, test and draw on synthetic images and volumes: under 5 minutes, results in runs/demo
	WANDB_MODE=$${WANDB_MODE:-offline} $(BIN)/semiseg demo

test: install  ## run the test suite
	$(BIN)/python -m pytest -n 2

lint: install  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install  ## measure speed: ratios against a bare PyTorch loop
	$(BIN)/python -m tests.benchmarks.step_time $(STEPS)

clean:  ## remove .venv, caches and build files; runs stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
