# Two commands serve a fresh machine: `make demo` and `make test`. Both set up what they need in .venv first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An editable install of this layout makes setuptools warn of folders of the package's name; nobody is to wonder at that.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip
# Files of tests are shared out among processes, one a core, each with one thread; in the order of tests/conftest.py.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint format site clean

demo: $(VENV)/.installed
	$(BIN)/fastxfer demo --out demo

test: $(VENV)/.installed-dev
	scripts/install-debian-packages.sh
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.cpp' 'tests/*.h' | xargs -0 -r $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files -z 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.cpp' 'tests/*.h' | xargs -0 -r $(BIN)/clang-format -i

site: $(VENV)/.installed-dev
	$(BIN)/python scripts/make_site.py build/site

# Sources of the compiled module: when one changes, the install is redone (an editable install rebuilds it in place).
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)

$(BIN)/python:
	scripts/install-debian-packages.sh --no-browser
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(PIP) install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build demo report fastxfer/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
