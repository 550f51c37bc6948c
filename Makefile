# Two commands do everything on a fresh machine with Python 3.11+, make and the package registries:
#   make serve [PORT=8000]    create the environment, install, start hubbub, print its address
#   make test                 likewise; then the whole suite: format, types, tests
# And: make bench [SCRIPT=fanout.py] [ARGS=…], a benchmark of bench/README.md; make clean.

PYTHON ?= python3
PORT ?= 8000
SCRIPT ?= fanout.py
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
COVER := $(if $(ARGS),,--cov-fail-under=94)
OR_NONE := $(if $(ARGS),|| test $$? = 5)

.PHONY: serve test check bench clean

serve: $(VENV)/.installed
	@exec $(BIN)/hubbub serve --port $(PORT)

# Most tests by four workers at once, as many of them wait; then those that measure, alone, and not slowed by coverage,
# to which they add nothing: their server is another process. Status 5 says that there is no test in that part: which
# may be, but only where ARGS asks for some tests. And only of a whole run is it known how much it should cover.
# Hundreds of processes are started: each must find hubbub compiled, even where the environment says otherwise.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed-dev check
	$(PYTEST) -m "not alone" --numprocesses 4 --dist worksteal --cov --cov-report=term $(COVER) $(ARGS) $(OR_NONE)
	$(PYTEST) -m alone $(ARGS) $(OR_NONE)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python bench/$(SCRIPT) $(ARGS)

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A missing Python, one that is too old, or one without venv gets one line, not a traceback.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "hubbub needs Python 3.11 or newer; '$(PYTHON)' isn't there. Install it, or say: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hubbub needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Say: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "hubbub needs Python's venv module; '$(PYTHON)' has none. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@
