# Needs Python 3.11 or newer, pip and make. Everything is installed and cached inside the checkout.
#
#   make quickstart   install, then fit real data: figures, trees and a summary in quickstart-output/
#   make test         install, then run the tests
#   make test-full    the whole matrix of tests
#   make test-lowest  the tests, with the oldest versions that pyproject.toml allows
#   make lint types docs benchmarks clean

PYTHON ?= python3
WORKERS ?= 2

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
CACHE := $(VENV)/cache
LOWEST := $(VENV)/lowest

# Test workers and repeated runs share what they compile. NumPyro lists the parameters of a
# distribution in the order of their names' hashes, which programs depend on.
export PYTHONHASHSEED := 0
export JAX_COMPILATION_CACHE_DIR := $(CACHE)/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0.5
export XDG_CACHE_HOME := $(CACHE)
export PIP_CACHE_DIR := $(CACHE)/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CACHE)/matplotlib
export MPLBACKEND := Agg
export PYRIGHT_PYTHON_CACHE_DIR := $(CACHE)/pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime

# Compiling dominates the tests: programs are hardly optimised there, and compiled in one piece, since
# the workers keep all cores busy. The whole matrix runs them as users do.
QUICK := --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 \
    --xla_cpu_parallel_codegen_split_count=1

PYTEST = $(BIN)/python -m pytest --numprocesses=$(WORKERS) --basetemp=$(VENV)/pytest

.PHONY: quickstart test test-full test-lowest lint types docs benchmarks clean
.NOTPARALLEL:

quickstart: $(VENV)/installed
	@$(BIN)/bayeskit quickstart

test: $(VENV)/installed-tests
	@XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(PYTEST) -m "not full"

test-full: $(VENV)/installed-tests
	@$(PYTEST) -m ""

test-lowest: $(LOWEST)/installed
	@XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(subst $(BIN),$(LOWEST)/bin,$(PYTEST)) -m "not full"

lint: $(VENV)/installed-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# The tests' group brings the optional packages that bayeskit imports.
types: $(VENV)/installed-lint $(VENV)/installed-tests
	@$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-docs
	@$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

benchmarks: $(VENV)/installed-benchmarks
	@$(BIN)/python -m benchmarks

clean:
	rm -rf .venv docs/_build docs/jupyter_execute quickstart-output dist \
	    .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file stands for a finished installation, so that a second run installs nothing. Dependency
# groups need pip 25.1, newer than the one that many Pythons put into a virtual environment.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "bayeskit needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-%: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --quiet --group $* --editable .
	@touch $@

$(LOWEST)/installed: pyproject.toml | $(VENV)/created
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z0-9-]*\)[^>]*>=\([0-9.]*\).*/\1==\2/p' pyproject.toml \
	    > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/lowest.txt \
	    --group tests --editable .
	@touch $@
