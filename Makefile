# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full lint clean

demo: $(INSTALLED)
	$(VENV)/bin/rimjax demo

test: $(INSTALLED)
	$(VENV)/bin/pytest

test-full: $(INSTALLED)
	$(VENV)/bin/pytest -m slow

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-output
