# Works on a bare Debian or Ubuntu with python3, gcc and make; what else is needed is installed by the
# targets that need it (as root, or through sudo).

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

STUB := inject/_stub.so inject/_preload.so inject/_heap.so inject/_heap_preload.so \
    inject/_boot.bin inject/_loader.bin inject/_unwind.so
# pip runs again when one of these changes; a changed stub is compiled by the target "stub".
PACKAGING := pyproject.toml setup.py inject/build_stub.py

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint types programs bench bench-quick stress stub bytecode clean

help: ## list these targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed stub bytecode ## profile a bundled program; writes demo-out/
	@$(BIN)/python tests/demo/run.py --pyattach $(BIN)/pyattach --output demo-out

test: programs lint types bytecode ## everything that is checked: lint, types, tests (installs their programs)
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/installed-dev stub ## mypy --strict
	@$(BIN)/python -m mypy --strict
	@cd benchmarks && MYPYPATH=.. ../$(BIN)/python -m mypy --config-file ../pyproject.toml \
	    --explicit-package-bases --ignore-missing-imports *.py

bench: $(VENV)/installed-bench stub bytecode ## measure pyattach beside its peers; writes benchmarks/RESULTS.md
	@tests/install-programs bench
	@$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

bench-quick: BENCH_ARGS = --quick
bench-quick: bench ## the same in minutes, with figures of a few rounds

stress: $(VENV)/installed-dev stub bytecode ## storms for hours: attach and detach, kills, faults, beside a naive dlopen
	@$(BIN)/python tests/stress.py $(STRESS_ARGS)

stub: ## compile the stub again where it is stale
	@$(PYTHON) inject/build_stub.py --if-stale

# As pip does with what it installs: where PYTHONDONTWRITEBYTECODE is set, each start would compile it all again.
bytecode: $(VENV)/installed
	@$(BIN)/python -m compileall -q pyattach attacher inject symbols render

programs:
	@tests/install-programs test

clean: ## remove what was built (and the venv, if it is .venv)
	@rm -rf .venv build dist demo-out *.egg-info tests/targets/build $(STUB)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's output is of interest only when it fails.
define pip_install
	@echo "installing pyattach$(1) into $(VENV)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -e '.$(1)' >$(VENV)/pip.log 2>&1 \
	    || { cat $(VENV)/pip.log; echo "pip could not install pyattach (see above)"; exit 1; }
endef

$(VENV)/installed: $(PACKAGING) | $(VENV)/pyvenv.cfg
	$(call pip_install,)
	@touch $@

$(VENV)/installed-dev: $(PACKAGING) | $(VENV)/pyvenv.cfg
	$(call pip_install,[dev])
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: $(VENV)/installed-dev
	$(call pip_install,[bench])
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "pyattach needs Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@tests/install-programs build
	@$(PYTHON) -m venv --clear $(VENV)
