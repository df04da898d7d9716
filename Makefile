# Python to make the environment with; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The next Airflow's pre-release; its own requirement on the task SDK brings that one's.
NEXT = apache-airflow==3.4.0b2
NEXT_VENV ?= .venv-next

# What `make bench` compares with. The Amazon provider pins aiobotocore, so this has an environment of its own.
BENCH_VENV ?= .venv-bench

# A file's tests stay together, as they share what it starts.
PARALLEL = --numprocesses 2 --dist loadfile

.PHONY: demo test test-next lint bench bench-quick clean

# Runs the proposal's DAGs in a real Airflow and shows what is stored where.
demo: $(VENV)/installed
	$(BIN)/python -m demo

# Types, style, and every test.
test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# Every test on the next Airflow, which needs Python 3.11 or later.
test-next: $(NEXT_VENV)/installed
	$(NEXT_VENV)/bin/python -m pytest $(PARALLEL)

# This backend beside common-io's and bare clients: figures into docs/bench and README. Ten minutes; the other one, one.
bench: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench

bench-quick: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench --quick

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

$(NEXT_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(NEXT_VENV)
	$(NEXT_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(NEXT_VENV)/bin/python -m pip install --quiet --editable . --group test '$(NEXT)'
	touch $@

$(BENCH_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable . --group bench
	touch $@

clean:
	rm -rf $(VENV) $(NEXT_VENV) $(BENCH_VENV) .mypy_cache .ruff_cache .pytest_cache
