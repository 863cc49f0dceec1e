# `make demo` and `make test` are all that is needed on a fresh machine with Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-engines lint docs format setup clean

demo: $(VENV)/.train
	$(BIN)/mathenv demo --out runs/demo

test: setup lint
	$(BIN)/pytest -q -n 2 -m 'not slow'

# The slow tests, then what pip alone cannot bring: each script installs and starts an engine and
# runs the tests that need it, or says aloud why it cannot here.
test-engines: setup
	$(BIN)/pytest -q -m slow
	set -e; for script in tests/engines/*.sh; do $$script $(BIN); done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Also built by the tests.
docs: setup
	$(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed

# constraints.txt pins every version, torch among them: an unpinned torch would bring
# gigabytes of CUDA packages to a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.train

# The demo needs no tools of development.
$(VENV)/.train: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
