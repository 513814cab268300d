PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo cohort test check fast benchmarks coverage schema golden hooks wheel clean

demo: $(VENV)/.installed  ## fresh machine to finished run on a synthetic cohort
	$(BIN)/snakemake all
	@echo "report: $(CURDIR)/results/report.html"

cohort: $(VENV)/.installed  ## the learning figures: the same graph on a larger cohort
	mkdir -p cohort
	$(BIN)/snakemake all --directory cohort --configfile configs/cohort.yaml
	@echo "report: $(CURDIR)/cohort/results/report.html"

test: check  ## everything that CI holds
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/.dev  ## format, lint, types, floors, schema
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile rules

fast: $(VENV)/.dev  ## unit tests only
	$(BIN)/python -m pytest -n 2 -m "not workflow and not slurm and not slow"

benchmarks: $(VENV)/.dev  ## ours beside the peers, on an idle machine; about 20 minutes
	for file in benchmarks/*.py; do $(BIN)/python $$file --json metrics/benchmarks.json || exit 1; done

coverage: $(VENV)/.dev  ## line coverage of the unit tests, in htmlcov/
	$(BIN)/python -m pytest -n 2 -m "not workflow and not slurm" --cov --cov-report=term --cov-report=html

schema: $(VENV)/.dev  ## write config.schema.json from ct3dlib/config/
	$(BIN)/python -m pytest tests/test_config.py -k schema --update-golden

golden: $(VENV)/.dev  ## accept new golden values; say why in the commit
	$(BIN)/python -m pytest tests --update-golden -m "not workflow and not slurm"

hooks: $(VENV)/.dev  ## install the local pre-commit hooks
	$(BIN)/prek install

wheel: $(VENV)/.dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove what runs have made; raw scans stay
	rm -rf data/catalog data/volumes data/regions data/lesions models runs tokens latents reconstructions samples predictions embeddings metrics results logs .snakemake

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .[dev]
	touch $@ $(VENV)/.installed
