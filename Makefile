# `make demo` and `make test` work on a bare clone: each makes .venv, installs and does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test test-slow durations lint check clean format docs dist

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Artel needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

## demo: three nodes and a coordinator train a small language model on this machine
demo: $(STAMP)
	$(BIN)/artel demo

PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

## test: the fast suite (real processes, real sockets), a process for each core, a file at a time,
## the longest first; what failed among the others is run once more alone, and shown both times
test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) || { test $$? -eq 1 && \
	$(BIN)/python -m pytest -rA --last-failed --last-failed-no-failures none; }

## test-slow: the rest of the suite
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

## durations: what each file of tests takes, for the order of the next `make test`
durations: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) --durations-out

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache --no-logo imports.toml

## check: style, types and tests
check: lint test

## docs: the site, in site/
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

## dist: the source archive and the wheel, in dist/, as a registry wants them
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-run* build dist site *.egg-info
