# Two commands do everything on a fresh machine: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(shell find engine/native -type f)

.PHONY: demo test test-slow soak bench bench-search lint clean postgres

# The main job on the demo model and an emulated accelerator: nothing here needs a GPU, and every figure says so.
DEMO    = $(shell $(BIN)/python -m moetune.demo)
EMULATE = desktop,vram_mib=8
# Apart from the user's own profiles and studies, and fresh every time.
TOUR    = MOETUNE_CONFIG_DIR=build/demo/config MOETUNE_STATE_DIR=build/demo/state $(BIN)/moetune

demo: $(STAMP)
	rm -rf build/demo
	$(TOUR) probe --emulate $(EMULATE)
	$(TOUR) search $(DEMO) --emulate $(EMULATE) --ctx 512 --trials 8 --rounds 6 --finalists 3
	$(TOUR) run $(DEMO) --emulate $(EMULATE) -p "def read_lines(path):" --max-tokens 64

# Loads models of many kinds into its own process, where other tests have loaded devices and the plugin before.
ALONE = tests/engine/test_sequence_context.py

test: lint postgres
	$(BIN)/pytest -m "not slow" $(addprefix --ignore=,$(ALONE))
	$(BIN)/pytest $(ALONE)

# Builds stock llama.cpp from its source distribution, among other things; about 15 minutes on two cores.
test-slow: $(STAMP) postgres
	$(BIN)/python -m pip install --quiet cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m slow

# Tests of shared searches start a PostgreSQL of their own; without one they are skipped and say so.
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)
postgres:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	    { $(SUDO) apt-get update && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	      apt-get install --yes --no-install-recommends postgresql; } || \
	    echo "PostgreSQL could not be installed: the tests of --storage are skipped."

# An hour of decoding while every setting changes, against stock llama.cpp: nothing may differ, nothing may grow.
MINUTES ?= 60
soak: $(STAMP)
	$(BIN)/python tests/differential/soak.py --minutes $(MINUTES) --tier CPU
	$(BIN)/python tests/differential/soak.py --minutes $(MINUTES) --tier EMU0

bench: $(STAMP)
	$(BIN)/python benchmarks/engine.py

# Replays recorded landscapes, about 20 minutes on two cores; recording them takes an hour. The GP arm needs '.[gp]'.
bench-search: $(STAMP)
	ls benchmarks/results/landscapes/*.json.gz >/dev/null 2>&1 || $(BIN)/python benchmarks/landscapes.py
	$(BIN)/python benchmarks/search.py --json benchmarks/results/search.json --figure docs/figures/search.png

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# llama-cpp-python is compiled on the first run (about 5 minutes on two cores); pip keeps the wheel.
$(STAMP): pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moetune needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing; the first time llama-cpp-python is compiled, about 5 minutes on two cores."
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
