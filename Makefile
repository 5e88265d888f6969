# `make demo`, `make test` and `make lint` work on a fresh clone: each makes the environment it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: install demo test docs notebooks situations random fuzz tables gpu lint format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@echo "making $(VENV): three to five minutes, 7 GB"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[vision,text,eval,export,bench,app,data,dev]'
	touch $@

demo: install
	$(BIN)/fxlrp demo -o out
	@echo "look at out/demo_*.png: red spoke for the class, blue against it; then try"
	@echo "  $(BIN)/fxlrp explain examples/model.pt examples/pictures/ring_star.png --html out/why.html"

FORMULAS := tests/test_rules.py tests/test_mass.py tests/test_oracles.py -k "not vgg and not vit"

test: install  # first what the formulas alone explain, without fxlrp/fast
	FXLRP_FAST=0 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal $(FORMULAS)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

docs: install  # the site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: install  # run them, and keep what they show
	PYTHONWARNINGS=ignore $(BIN)/python -m nbconvert --to notebook --execute --inplace docs/notebooks/*.ipynb

random: install
	EXAMPLES=$${EXAMPLES:-10000} $(BIN)/python -m pytest tests/test_random_graphs.py --hypothesis-seed=$${SEED:-1}

fuzz: install
	$(BIN)/python -W ignore -m tests.inputs.fuzzing --minutes $${MINUTES:-60} --seed $${SEED:-1} --keep out/fuzz

tables: install  # docs/benchmarks.md, in half an hour
	$(BIN)/python -m benchmarks.tables --workers 2 --docs docs/benchmarks.md

gpu:
	$(PYTHON) -m benchmarks.gpu

situations: install
	$(BIN)/python -m benchmarks.situations --out out/situations.jsonl
	$(BIN)/python -m benchmarks.situations --out out/situations.jsonl --report docs/situations.md

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out
