# Everything from a clean clone: `make train` sets up and trains, `make test` sets up and tests.
# ARGS is handed on:  make train ARGS="seed=1 tracking=none"   make test ARGS="tests/envs -x"

SHELL := /bin/bash
VENV ?= .venv
# The platform of an environment that is there stays what it is: a login node without a GPU sees the one of the GPU nodes.
INSTALLED := $(firstword $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*)))
PLATFORM ?= $(or $(INSTALLED),$(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu))
MODEL ?= smollm2_135m
ARGS ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(PLATFORM)

.DEFAULT_GOAL := help
.PHONY: help setup train models data test test-slow lint format bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo '  Variables: ARGS (handed on), PLATFORM=cpu|gpu, PYTHON=…, INSTALLER=uv|pip, VENV=.venv, MODEL=smollm2_135m'

setup: $(STAMP)  ## make .venv with everything that is needed

$(STAMP): requirements/$(PLATFORM).lock requirements/install.sh pyproject.toml
	@bash requirements/install.sh "$(VENV)" "$(PLATFORM)"

train: setup  ## set up and train: SFT, then GRPO, with a report in outputs/
	$(PY) -m training.main +experiment=grpo $(ARGS)

models: setup  ## fetch MODEL and convert it, as training does by itself
	$(PY) -m taudojo.cli models get $(MODEL) $(ARGS)

data: setup  ## fetch the τ² data, as training does by itself
	$(PY) -m taudojo.cli data get $(ARGS)

test: setup  ## the tests of a few minutes
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup  ## the tests with real models, Ray, vLLM and SLURM
	$(PY) -m pytest -m "slow and not gpu" $(ARGS)

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## let ruff write the format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup  ## environments against inspect-evals; learner, GRPO steps and rollouts against TRL; the scheduler's overhead
	@ls outputs/*/sft_model/config.json >/dev/null 2>&1 || $(PY) -m training.main +experiment=grpo  # whose checkpoint they start from
	$(PY) -m benchmarks.envs
	$(PY) -m benchmarks.learner
	$(PY) -m benchmarks.scale
	$(PY) -m benchmarks.parsers
	$(PY) -m benchmarks.rollouts
	$(PY) -m benchmarks.grpo

clean:  ## remove .venv and what tools leave behind; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
