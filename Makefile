# Two commands on a fresh machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FONT   := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE  := 1

.PHONY: demo test format lint types tests docs clean

demo: $(VENV)/.installed
	$(BIN)/tiller steer "a black rabbit on a green background" --method dno --reward clip \
	    --budget steps=20 --out demo
	$(BIN)/tiller report demo

test: lint types tests

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

tests: $(VENV)/.installed $(FONT)
	$(BIN)/python -m pytest

# Only the tests of the scene generator need it; without it and without root they are skipped.
$(FONT):
	-[ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -q && \
	    apt-get install -y -q fonts-noto-color-emoji

# One environment for both commands. The pins make the install the same everywhere.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The API's pages from the docstrings, into docs/api.
docs: $(VENV)/.installed
	$(BIN)/pdoc -o docs/api tiller tiller.api tiller.core tiller.models tiller.rewards \
	    tiller.solvers tiller.methods tiller.words tiller.llm tiller.runs tiller.testing

clean:
	rm -rf $(VENV) demo runs
