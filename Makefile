# Two commands on a fresh machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE  := 1

.PHONY: demo test format lint types tests docs clean

demo: $(VENV)/.installed
	$(BIN)/tiller steer "a black rabbit on a green background" --method dno --reward clip \
	    --budget steps=20 --out demo
	$(BIN)/tiller report demo/latest

test: lint types tests

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

tests: $(VENV)/.installed
	$(BIN)/python -m pytest

# One environment for both commands. The pins make the install the same everywhere.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The API's pages from the docstrings, into docs/api.
docs: $(VENV)/.installed
	$(BIN)/pdoc -o docs/api tiller tiller.api tiller.core tiller.models tiller.rewards \
	    tiller.solvers tiller.methods tiller.runs tiller.testing

clean:
	rm -rf $(VENV) demo runs
