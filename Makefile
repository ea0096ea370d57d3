# Two commands do everything on a fresh machine: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(shell find engine/native -type f)

.PHONY: demo test test-slow bench lint clean

demo: $(STAMP)
	$(BIN)/python -m moetune.demo.tour

test: $(STAMP)
	$(MAKE) lint
	$(BIN)/pytest -m "not slow"

# Builds stock llama.cpp from its source distribution, among other things; about 15 minutes on two cores.
test-slow: $(STAMP)
	$(BIN)/pytest -m slow

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# llama-cpp-python is compiled on the first run (about 5 minutes on two cores); pip keeps the wheel.
$(STAMP): pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moetune needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
