# Each goal sets up what it needs; the first one takes minutes for the downloads, later ones none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Hundreds of processes start in the tests, and every one would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint pytest format clean

demo: $(INSTALLED)
	$(BIN)/lustrate demo

# Lint takes one core, so the tests need not wait for it.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

# One process more than cores, up to four, since some wait for a service; a file's tests stay together, the slowest files
# come first, and no process takes a second core for its sums. The allocator is that of a job's process.
pytest: $(INSTALLED)
	OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=536870912 $(BIN)/python -m pytest -q --dist loadfile --no-loadscope-reorder \
		--numprocesses $$($(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist demo-output

# The stamp is written last, so an installation that broke is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
