# make quickstart   see unlabelled images make a detector better (minutes, no GPU needed)
# make test         every test
#
# Both make .venv where it is missing and install from PyPI; a second run installs nothing.
#   PYTHON=python3.12 make test     another interpreter
#   VENV=/path/to/env make test     another environment
#   INDEX=https://download.pytorch.org/whl/cpu make install    PyTorch without CUDA, smaller by gigabytes

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# A process for each core, four at most; tests/conftest.py gives each one thread.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: help environment install install-dev quickstart test test-fast lint format bench gpu-check fuzz
.DEFAULT_GOAL := help

help:
	@echo "make quickstart | test | test-fast | lint | format | bench | gpu-check | fuzz | install | install-dev   (see Makefile)"

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

quickstart: $(INSTALLED)
	$(PY) tools/quickstart.py

test: $(INSTALLED)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-fast: $(INSTALLED)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(PY) tools/bench.py

fuzz: $(INSTALLED)
	SED_FUZZ=all $(PY) -m pytest -n $(WORKERS) tests/fuzz $(PYTEST_ARGS)

gpu-check: $(INSTALLED)
	$(PY) tools/gpu_check.py

lint: $(INSTALLED_DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/repo/test_layering.py

format: $(INSTALLED_DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The stamps lie inside the environment: deleting it, or changing setup.py, installs anew.
$(INSTALLED): setup.py
	@$(PY) -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory environment GOALS="$(MAKECMDGOALS)"
	@echo "Installing into $(VENV); PyTorch takes some minutes the first time."
	@[ -z "$(INDEX)" ] || $(PY) -m pip install --disable-pip-version-check torch torchvision --index-url "$(INDEX)"
	$(PY) -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@

environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "sed needs Python >= 3.10, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: PYTHON=python3.12 make $(GOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

$(INSTALLED_DEV): $(INSTALLED)
	$(PY) -m pip install --disable-pip-version-check -e '.[test,dev]'
	@touch $@
