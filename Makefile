# From a fresh clone `make app` and `make test` are enough. They need git, make and Python 3.11 or newer.
#   PYTHON=python3.12   the interpreter that .venv is made with (default: the first that fits)
#   PORT=8600           the port of `make app` (default: 8501, or the next free one)
#   LOCKED=1            fill a fresh .venv with the exact versions of requirements.lock (Linux x86-64, Python 3.11)
#   ARGS="-k grid"      further arguments for pytest, or for the benchmark
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help app install-app install-test test test-all lint format bench lock wheel clean

VENV := .venv
# Always `python -m`: scripts in .venv/bin name the folder they were installed in and break when it moves.
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check $(if $(LOCKED),--constraint requirements.lock)
# Two processes of one thread each: most tests keep one core busy. What goes where is said in tests/conftest.py.
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
INPUTS := requirements.txt pyproject.toml hatch_build.py Makefile

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

app: install-app ## install what is missing and serve the app on a free port
	@$(PY) -m mmcd assets || echo "warning: the map's scripts could not be fetched; the app works, the map asks for them again"
	@$(PY) -m streamlit run app.py --server.headless true $(if $(PORT),--server.port $(PORT))

test: install-test ## run the quick tests
	$(PARALLEL) -m "not slow" $(ARGS)

test-all: install-test ## run every test, minutes more
	$(PARALLEL) $(ARGS)

lint: install-test ## check style, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) $(VENV)/bin/lint-imports

format: install-test ## put the code in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install-test ## measure every claimed speed against its baseline, about 20 quiet minutes; ARGS="--only a,c" for some
	$(PY) benchmarks/bench.py $(ARGS)

wheel: install-app ## build dist/mmcd-*.whl with the app, the weights and the samples inside
	$(PY) -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

lock: install-test ## write the installed versions to requirements.lock
	@{ printf '# Exact versions that the tests passed with, on Linux x86-64 and %s.\n' "$$($(PY) -c 'import platform; print("Python", ".".join(platform.python_version_tuple()[:2]))')"; \
	  printf '# Use it with `make app LOCKED=1`; write it again with `make lock` after `make clean`.\n'; \
	  $(PY) -m pip freeze --all --exclude pip --exclude-editable; } > requirements.lock.part
	@mv requirements.lock.part requirements.lock

clean: ## remove .venv, caches and builds; never runs, scenes or training logs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written after its command succeeded, so an interrupted installation is taken up again.
install-app: $(VENV)/.stamp-app ## install the app into .venv
install-test: $(VENV)/.stamp-test ## install the app and what its tests need into .venv

$(VENV)/.stamp-app: $(VENV)/.stamp-venv $(INPUTS)
	@echo "Installing mmcd into $(VENV): about 5 GB and a few minutes the first time."
	@$(PIP) -r requirements.txt -e .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-app
	@$(PIP) -e '.[fast,test]'
	@touch $@

# An environment that works is kept; one that an interruption or a Python upgrade left broken is made again.
$(VENV)/.stamp-venv:
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: mmcd needs Python 3.11 or newer; $$(python3 --version 2>/dev/null || echo no python3) was found." \
	      "Install it, or name one: make app PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "error: $$found has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	  fi; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@touch $@
