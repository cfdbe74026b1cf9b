# Needs Python >= 3.11 and Make. Every target that runs something first sets up .venv from requirements.lock.

VENV ?= .venv
PY := $(VENV)/bin/python
# Unless another is named, the interpreter is that of .venv, if there is one that runs.
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(if $(shell $(PY) --version 2>/dev/null),$(PY),python3)
endif

# Of make reproduce-table<N>.
FROM ?= released
PRESET ?=
SEED ?=
RESULTS ?= $(if $(filter scratch,$(FROM)),runs/from_scratch,runs/reproduction)
DATASET ?=
RUN ?=
# Of make reproduce-all, too.
LOGGER ?=
REPRODUCE = --from $(FROM) $(if $(PRESET),--preset $(PRESET)) $(if $(SEED),--seed $(SEED)) $(if $(DATASET),--dataset $(DATASET)) --results '$(RESULTS)'$(if $(LOGGER), --logger $(LOGGER))

# The stamp's name holds a checksum of what is installed and where, so that a changed lock, another branch or a moved
# checkout installs again, while a mere change of the files' times does not.
STAMP := $(VENV)/.installed-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help install lint format test tables figures benchmark costs clean-venv
.PHONY: reproduce-table1 reproduce-table2 reproduce-table3 reproduce-table4 reproduce-all

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv with the versions of requirements.lock (PYTHON=python3.12 to choose the interpreter)

# Whatever the stamp says, a .venv of another Python, or of one that is gone, is made anew.
ifneq ($(shell $(PY) --version 2>/dev/null),$(or $(shell $(PYTHON) --version 2>/dev/null),none))
  .PHONY: $(STAMP)
endif

# The stamp is written last: an interrupted installation has none and is repeated.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python >= 3.11 is needed, and "$(PYTHON)" is not: name one, as in make PYTHON=python3.12 ...' >&2; exit 1; }
	@rm -f $(VENV)/.installed-*
	@{ test "$$($(PY) --version)" = "$$($(PYTHON) --version)" && $(PY) -m pip --version; } >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV)
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

# One process a core with one thread each, up to four: more threads than cores would slow one another down, and a
# container may have fewer than it sees.
test: lint ## Run lint, then all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

reproduce-table1: $(STAMP) ## Table 1, Figures 2 and 3 [FROM=released|scratch] [PRESET=fast|paper|smoke] [SEED=] [RESULTS=] [LOGGER=wandb|none]
	$(PY) scripts/reproduce.py table1 $(REPRODUCE)

reproduce-table2: $(STAMP) ## Table 2 and Figure 4, on a part of ILSVRC-12 or on all of it [DATASET=imagenette|ilsvrc12, FROM, PRESET, SEED, RESULTS, LOGGER likewise]
	$(PY) scripts/reproduce.py table2 $(REPRODUCE)

reproduce-table3: $(STAMP) ## Table 3, Figures 5 and 6, from the NUS images in OEN_DATA_DIR [FROM, PRESET, SEED, RESULTS, LOGGER likewise]
	$(PY) scripts/reproduce.py table3 $(REPRODUCE)

reproduce-table4: $(STAMP) ## Table 4, Figures 7 and 8, from the photos in OEN_DATA_DIR [DATASET=facades|paris_street_view, and likewise]
	$(PY) scripts/reproduce.py table4 $(REPRODUCE)

reproduce-all: $(STAMP) ## Every table and figure from the records that are there, and what is missing [RUN=missing trains and evaluates that first, LOGGER=wandb|none]
	$(PY) scripts/reproduce_all.py $(if $(LOGGER),--logger $(LOGGER)) $(if $(RUN),--run $(RUN))

tables: $(STAMP) ## Render the tables and figures from the committed records
	$(PY) scripts/render.py

figures: tables ## The same as tables: one command renders both

benchmark: $(STAMP) ## Time the networks on this device and choose its fastest settings; let nothing else run meanwhile
	$(PY) scripts/benchmark.py

costs: $(STAMP) ## Time the strategies of Table 1, and the ablations, on this device; let nothing else run meanwhile
	$(PY) scripts/measure_costs.py table1
	$(PY) scripts/measure_costs.py ablations

clean-venv: ## Remove .venv
	rm -rf $(VENV)
