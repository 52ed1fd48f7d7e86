# make lab     set up, then open the course in JupyterLab
# make test    set up where needed, then run every test and every notebook; what is heavy and has not changed,
#              on a small recipe
# make test-all  the same, everything on its real recipe
# make site    the course as web pages, with its stored outputs, in build/site; needs no network
# make course  execute the whole course; copies land in build/course
# make zh      write the Chinese notebooks from notebooks/zh/text; says what is not translated
# make check   is this machine ready?
#
# PYTHON=python3.13 make lab                 chooses the interpreter (3.11 to 3.14)
# LAB_ARGS='--no-browser --ip=0.0.0.0'       goes to JupyterLab, PYTEST_ARGS='-k temperature' to pytest

PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready

# Where it is set, each of the hundred processes of a test run compiles PyTorch anew, for eight seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help lab test test-all site course zh check record lint lock clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# uv installs the pinned wheels; --require-hashes refuses any file that differs from the lock.
# The stamp comes last, so an interrupted installation is taken up again by the next make.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "kdlib needs Python 3.11 to 3.14, this is %d.%d; try: make PYTHON=python3.13 $(MAKECMDGOALS)" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-virtualenv uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

lab: $(READY)
	$(BIN)/jupyter lab $(LAB_ARGS) notebooks/00_start_here.ipynb

# Two workers with one thread each: on two cores that is faster than one worker with two threads.
# LOKY_MAX_CPU_COUNT keeps the workers from starting workers of their own.
test: $(READY)
	OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1 $(BIN)/python -m pytest -q --nbval -n 2 --dist loadscope --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

test-all: PYTEST_ARGS += --all-notebooks
test-all: test

site: $(READY)
	$(BIN)/python -m kdlib course --site

course: $(READY)
	$(BIN)/python -m kdlib course

# ZH_ARGS=--stubs adds the English text of what is not translated, for the translator.
zh: $(READY)
	$(BIN)/python -m kdlib course --zh $(ZH_ARGS)

check: $(READY)
	$(BIN)/python -m kdlib check

# For authors: execute the notebooks in place and store outputs, measured minutes and, of heavy notebooks, the
# fingerprint of what they run. NAMES='04_cat_vs_dog' records only these.
record: $(READY)
	$(BIN)/python -m kdlib course --record $(NAMES)

lint: $(READY)
	$(BIN)/ruff check kdlib tests

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf .venv build
