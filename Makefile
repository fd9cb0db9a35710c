PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench bench-quick clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/ppfed demo

# One test more than the two cores of CI: many wait for Flower's polling. Threads that wait must not spin on a core.
test: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

bench: setup
	$(BIN)/ppfed bench

bench-quick: setup
	$(BIN)/ppfed bench --quick

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
