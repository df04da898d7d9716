# Python to make the environment with; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The next Airflow's pre-release; its own requirement on the task SDK brings that one's.
NEXT = apache-airflow==3.4.0b2
NEXT_VENV ?= .venv-next

# The rivals that `make bench` measures, one of which pins aiobotocore.
BENCH_VENV ?= .venv-bench

# A file's tests stay together, as they share what it starts.
PARALLEL = --numprocesses 2 --dist loadfile

.PHONY: demo test test-clients test-next lint bench bench-quick clean

# Runs the proposal's DAGs in a real Airflow and shows what is stored where.
demo: $(VENV)/installed
	$(BIN)/python -m demo

# Types, style, and every test.
test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# Operators and a trigger of others, killed and in outages; two of these take more than a minute and run here alone.
test-clients: $(VENV)/installed
	OUTAGES_LONG=1 $(BIN)/python -m pytest $(PARALLEL) tests/clients

# Every test on the next Airflow, which needs Python 3.11 or later.
test-next: $(NEXT_VENV)/installed
	$(NEXT_VENV)/bin/python -m pytest $(PARALLEL)

# Ours beside the rivals: figures into docs/bench and README. Ten minutes; the other one, a minute.
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
