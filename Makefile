# Everything a fresh machine needs: `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-servers lint types wheel assets clean

demo: $(STAMP)
	$(BIN)/swift-rm demo

test: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

# What takes minutes or starts servers: llama.cpp's own with the tiny reasoner, Ray clusters, trainers that are killed.
test-servers: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[servers]"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m servers

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The wheel, installed in an empty environment, used from another folder.
wheel: $(STAMP)
	PYTHON=$(abspath $(BIN)/python) BASE_PYTHON=$(PYTHON) sh .ci/check_wheel

# The embedded models again, from nothing, as they were made: about two hours on two cores.
assets: $(STAMP)
	$(BIN)/python examples/train_tiny_reasoner.py --last late --out swift_rm/assets/tiny-reasoner
	$(BIN)/python examples/train_tiny_reasoner.py --init swift_rm/assets/tiny-reasoner --first polish --seed 1 --out swift_rm/assets/tiny-reasoner
	$(BIN)/python examples/train_tiny_reward.py --out swift_rm/assets/tiny-reasoner-reward
	$(BIN)/python examples/train_tiny_reward.py --prefixes 1 --questions 2000 --out swift_rm/assets/tiny-reasoner-progress
	$(BIN)/python examples/train_tiny_reasoner.py --init swift_rm/assets/tiny-reasoner --grow 2 --worlds homework rewriting --out swift_rm/assets/tiny-reasoner-2
	$(BIN)/python examples/train_tiny_thinker.py --out swift_rm/assets/tiny-thinker

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
