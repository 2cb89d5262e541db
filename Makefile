# The two commands of the README, and the long checks. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
POLICY ?=

.PHONY: run test together alone acceptance check clean

run: $(VENV)/core
	$(BIN)/plexus run sim $(if $(POLICY),--policy $(POLICY))

# First two tests at a time; then, with a core left to pyright, those that assert times.
test: $(VENV)/test
	@$(MAKE) --no-print-directory together; together=$$?; \
	$(MAKE) --no-print-directory -j2 check alone && exit $$together

together: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not acceptance and not alone' -n 2 --dist worksteal

alone: $(VENV)/test
	$(BIN)/python -m pytest -m 'alone and not acceptance'

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Long: 60 s real-time walks, benchmark, mutation of the safety filter and the mode machine.
acceptance: $(VENV)/test
	$(BIN)/python -m pytest -m acceptance
	$(BIN)/python tests/mutation.py
	$(BIN)/plexus bench $(if $(POLICY),--policy $(POLICY)) --json bench.json

$(VENV)/core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/test: pyproject.toml $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
