# `make demo` and `make test` do all the set-up on a fresh machine: .venv with pinned versions.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full experiments docs lint constraints clean

demo: $(INSTALLED)
	$(VENV)/bin/rimjax demo

test: $(INSTALLED)
	$(VENV)/bin/pytest

test-full: $(INSTALLED)
	$(VENV)/bin/pytest -m slow
	$(VENV)/bin/pytest tests/robustness --robust 70

# Every table and figure on the mini preset, to experiments/results/mini, with the demo's bank.
experiments: $(INSTALLED)
	$(VENV)/bin/python experiments/reproduce.py --cache-dir demo-output/cache

# The site, in build/site; open it with `python -m http.server -d build/site`.
docs: $(INSTALLED)
	EXECUTE_NOTEBOOKS=true NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

# Writes what the dev extra needs in a fresh venv. Versions stay pinned: delete a line to update it.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install -q -c constraints.txt -e ".[dev]"
	build/constraints/bin/pip freeze --exclude-editable --exclude pip --exclude setuptools \
		> constraints.txt

clean:
	rm -rf $(VENV) demo-output
