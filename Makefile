# `make run` and `make test` do everything on a fresh machine with only python3 (3.11 or later) and make.
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
# The part of the tests that depends on the JAX version most.
CORE := tests/scans tests/kernels tests/laws

.PHONY: help run test test-all test-core claims aot bench lint format

help:
	@echo "make run        train a byte language model on the standard library's source, at most 3 minutes"
	@echo "make test       all tests, some 30 minutes on 2 cores"
	@echo "make test-all   also the slow ones: parity, long fault injection, ahead-of-time compilation"
	@echo "make test-core  scans, kernels and laws only"
	@echo "make claims     every quick experiment on seeds 0, 1, 2; verdicts to experiments/results"
	@echo "make aot        compile every kernel ahead of time for TPU v5e, v5p, v6e, and with PYTHON=python3.12 for the H100"
	@echo "make bench      benchmarks/cpu.py; results to benchmarks/results"
	@echo "make lint       ruff;   make format   ruff, in place"
	@echo "PYTHON=python3.12 picks another interpreter, with an environment of its own"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $(STAMP)

.venv: $(STAMP)

run: $(STAMP)
	$(BIN)/python -m experiments.launch --experiment=byte_lm --preset=quick --workdir=runs/byte_lm --overwrite

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-core: $(STAMP)
	$(PYTEST) -m "not slow" $(CORE)

test-all: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,parity,tpu]"
	$(PYTEST)

claims: $(STAMP)
	$(BIN)/python -m experiments.claims

aot: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,tpu]"
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 12))" && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt jax-cuda13-plugin jax-cuda13-pjrt || true
	$(BIN)/python -m benchmarks.aot

bench: $(STAMP)
	$(BIN)/python -m benchmarks.cpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
