# make demo   set up and run the main job on a synthetic cohort
# make test   set up and run the tests; make test-slow: those that take longer
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Percent of the lines of each of these folders that its own tests run; counting lines takes time.
FLOOR = 95
COVERED = evaluation dataset readers
# Those that train most: run apart, since a process keeps some memory of every training.
TRAINING = tests/training tests/tuning tests/automl
FAST_TESTS = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow'
COUNTED = $(COVERED:%=tests/%)

.PHONY: demo test test-slow lint bench clean

$(READY): setup.cfg requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medseq_tf needs Python 3.11 or newer; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/medseq-tf prepare demo --out demo/prepared --overwrite
	rm -rf demo/search demo/run demo/model demo/explained
	$(BIN)/medseq-tf tune tuning/demo.yaml --data demo/prepared --out demo/search --trials 2 --no-retrain
	$(BIN)/medseq-tf train demo/search/best.yaml --data demo/prepared --out demo/run --set fit.epochs=12
	$(BIN)/medseq-tf evaluate demo/run --data demo/prepared --audit
	$(BIN)/medseq-tf explain demo/run --data demo/prepared --out demo/explained --quality
	$(BIN)/medseq-tf report demo/run --data demo/prepared --images
	$(BIN)/medseq-tf export demo/run --data demo/prepared --out demo/model

test: $(READY)
	$(FAST_TESTS) $(TRAINING)
	$(FAST_TESTS) $(TRAINING:%=--ignore=%) $(COUNTED:%=--ignore=%)
	$(FAST_TESTS) --cov --cov-report= $(COUNTED)
	for room in $(COVERED); do $(BIN)/coverage report --include="medseq_tf/$$room/*" --skip-covered --fail-under=$(FLOOR) || exit 1; done

test-slow: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) demo build *.egg-info
