# Needs Python >= 3.11 and Make. Every target that runs something first sets up .venv from requirements.lock.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# Of make reproduce-table1.
FROM ?= released
PRESET ?= fast
SEED ?= 0
RESULTS ?= runs/reproduction

# The stamp's name holds a checksum of what is installed and where, so that a changed lock, another branch or a moved
# checkout installs again, while a mere change of the files' times does not.
STAMP := $(VENV)/.installed-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help install lint format test reproduce-table1 tables figures benchmark clean-venv

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv with the versions of requirements.lock (PYTHON=python3.12 to choose the interpreter)

# The stamp is written last: an interrupted installation has none and is repeated.
$(STAMP):
	@rm -f $(VENV)/.installed-*
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python >= 3.11 is needed, and "$(PYTHON)" is not: name one, as in make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --disable-pip-version-check --no-deps -r requirements.lock
	$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: $(STAMP) ## Check style and types: ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## Rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: lint ## Run lint, then all tests
	$(PY) -m pytest

reproduce-table1: $(STAMP) ## Table 1 and Figure 2 [FROM=released|scratch] [PRESET=fast|paper|smoke] [SEED=0] [RESULTS=runs/reproduction]
	$(PY) scripts/reproduce.py table1 --from $(FROM) --preset $(PRESET) --seed $(SEED) --results $(RESULTS)

tables: $(STAMP) ## Render the tables and figures from the committed records
	$(PY) scripts/render.py

figures: tables ## The same as tables: one command renders both

benchmark: $(STAMP) ## Time the networks on this device and choose its fastest settings; let nothing else run meanwhile
	$(PY) scripts/benchmark.py

clean-venv: ## Remove .venv
	rm -rf $(VENV)
