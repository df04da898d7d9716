# Python to make the environment with; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# To test with one Airflow alone: make test AIRFLOW='apache-airflow-core==3.3.*'
AIRFLOW ?=

# The next Airflow's pre-release; its own requirement on the task SDK brings that one's.
NEXT = apache-airflow==3.4.0b2
NEXT_VENV ?= .venv-next

# What `make bench` compares with. The Amazon provider pins aiobotocore, so this has an environment of its own.
BENCH_VENV ?= .venv-bench

# What `make bench-clouds` compares with: Airflow's providers of both clouds bring 2 GB.
BENCH_CLOUDS_VENV ?= .venv-bench-clouds

# The lowest versions that pyproject.toml allows, on the lowest Python that is there.
FLOOR_VENV ?= .venv-floor
FLOOR_PYTHON ?= $(firstword $(shell python3.10 -c "print('python3.10')" 2>/dev/null) $(PYTHON))

# Operators of others and Celery, whose packages slow down every process of Airflow that loads plugins.
CLIENTS_VENV ?= .venv-clients

# Node, Azurite and Azure's libraries.
CLOUDS_VENV ?= .venv-clouds

MUTANTS_VENV ?= .venv-mutants

DOCS_VENV ?= .venv-docs

# Tools that build and check the artifact and the workflows; the artifact itself, for the tests.
TOOLS_VENV ?= .venv-tools
WHEEL_VENV ?= .venv-wheel

# What the artifact is installed beside. What pip finds then is not installed.
BESIDE = 'apache-airflow[celery]==3.3.2' 'apache-airflow-providers-amazon[s3fs]'

# A file's tests stay together, as they share what it starts.
# In their order, as those of whole Airflows come first then, and not alone at the end.
# Twice as many processes as the smallest of machines has cores, since many tests wait for what is slow on purpose.
PARALLEL = --numprocesses 4 --dist loadfile --no-loadscope-reorder

# What is imported is compiled once, also where the machine says otherwise: each of the suite's processes would compile the
# tests for itself, and each that they start the package.
export PYTHONDONTWRITEBYTECODE =

# They take minutes, need more packages, or hold the pages against what they show: each has a target of its own.
LEFT_OUT = --ignore tests/bench --ignore tests/clients --ignore tests/deployment --ignore tests/docs

.PHONY: demo test suite test-bench test-clients test-clouds test-deployment test-next test-floor mutants lint docs test-docs package test-package test-wheel audit workflows bench bench-quick bench-clouds clean

# Runs the proposal's DAGs in a real Airflow and shows what is stored where.
demo: $(VENV)/installed
	$(BIN)/python -m demo

# Types, style, and every test. One test alone takes seconds:
# .venv/bin/python -m pytest tests/stores/s3/test_s3.py -k takes_one_request
test: $(VENV)/installed
	$(MAKE) --jobs 2 --no-print-directory lint suite

# Beside mypy, which keeps one core busy for twenty seconds when it first runs.
suite: $(VENV)/installed
	$(BIN)/python -m pytest $(PARALLEL) $(LEFT_OUT)

# Operators and a trigger of others, killed and in outages, two of them for more than a minute; and what common-io's backend
# has written to S3.
test-clients: $(CLIENTS_VENV)/installed
	OUTAGES_LONG=1 $(CLIENTS_VENV)/bin/python -m pytest $(PARALLEL) tests/clients tests/backend/test_common_io.py

# Azure's blobs on Azurite, and Google Cloud Storage on fake-gcs-server: their own tests, and on both what every kind of
# store has to pass.
test-clouds: $(CLOUDS_VENV)/installed
	$(CLOUDS_VENV)/bin/python -m pytest $(PARALLEL) tests/stores tests/backend tests/cli tests/sweep tests/docs/test_commands.py -k 'cloud or [gs or [az or -gs or -az'

# Whole deployments: LocalExecutor on SQLite, and CeleryExecutor with Redis, PostgreSQL and SeaweedFS where Debian's
# redis-server and postgresql are installed. Ten minutes.
test-deployment: $(CLIENTS_VENV)/installed
	$(CLIENTS_VENV)/bin/python -m pytest tests/deployment tests/airflow/test_celery.py tests/sweep/test_database.py

# Every measure of `make bench` and `make bench-clouds`, as small as it gets.
test-bench: $(BENCH_VENV)/installed $(BENCH_CLOUDS_VENV)/installed
	$(BENCH_VENV)/bin/python -m pytest tests/bench/test_bench.py
	$(BENCH_CLOUDS_VENV)/bin/python -m pytest tests/bench/test_clouds.py

# Every test on the next Airflow, which needs Python 3.11 or later.
test-next: $(NEXT_VENV)/installed
	$(NEXT_VENV)/bin/python -m pytest $(PARALLEL) $(LEFT_OUT)

# The tests of S3 and of the contract on the lowest versions.
test-floor: $(FLOOR_VENV)/installed
	$(FLOOR_VENV)/bin/python -m pytest $(PARALLEL) tests/stores tests/backend/test_contract.py tests/test_purge.py

# Which changes of the modules without I/O no test notices: into docs/mutants.md. An hour, or less with MODULES=purge.
mutants: $(MUTANTS_VENV)/installed
	$(MUTANTS_VENV)/bin/python -m tests.project.mutants $(MODULES)

# This backend beside common-io's and bare clients: figures into docs and README. Ten minutes; the other one, one.
bench: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench

bench-quick: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench --quick

# The same in Google Cloud Storage and Azure: figures into docs. Ten minutes.
bench-clouds: $(BENCH_CLOUDS_VENV)/installed
	$(BENCH_CLOUDS_VENV)/bin/python -m bench.clouds

# The documentation's site, into build/site. A warning is an error, and so is a link or an anchor that leads nowhere.
docs: $(DOCS_VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

# Every page in a browser, which has to be installed (Debian's chromium), the commands of all pages, which have to print what
# the pages show, and the quick start on one machine, as its page has it. Three minutes.
test-docs: docs $(VENV)/installed
	$(DOCS_VENV)/bin/python -m tests.docs.browser
	$(BIN)/python -m pytest tests/docs

# Wheel and sdist, in dist.
package: $(TOOLS_VENV)/installed
	rm -rf dist
	$(TOOLS_VENV)/bin/python -m build --outdir dist

# What is in them, how they are described, and that pip finds no conflict beside each of what others have installed.
test-package: package
	$(TOOLS_VENV)/bin/twine check --strict dist/*
	$(TOOLS_VENV)/bin/check-wheel-contents dist/*.whl
	for beside in $(BESIDE); do \
		$(TOOLS_VENV)/bin/python -m pip install --quiet --dry-run --ignore-installed dist/*.whl "$$beside" || exit 1; \
		echo "no conflict beside $$beside"; \
	done

# The suite on the wheel, and not on the checkout.
test-wheel: package
	rm -rf $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(WHEEL_VENV)/bin/python -m pip install --quiet dist/*.whl --group test
	$(WHEEL_VENV)/bin/python -c "import async_state; assert 'site-packages' in async_state.__file__"
	$(WHEEL_VENV)/bin/python -m pytest $(PARALLEL) $(LEFT_OUT)

# Known vulnerabilities of what is installed with the package.
audit: $(TOOLS_VENV)/installed
	$(TOOLS_VENV)/bin/pip-audit --strict .

workflows: $(TOOLS_VENV)/installed
	$(TOOLS_VENV)/bin/python -m pip install --quiet --group workflows
	$(TOOLS_VENV)/bin/actionlint
	$(TOOLS_VENV)/bin/zizmor --offline --persona pedantic .github

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m codespell_lib
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev $(if $(AIRFLOW),'$(AIRFLOW)')
	touch $@

$(NEXT_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(NEXT_VENV)
	$(NEXT_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(NEXT_VENV)/bin/python -m pip install --quiet --editable . --group test '$(NEXT)'
	touch $@

# uv, since pip has no way to ask for the lowest versions.
$(FLOOR_VENV)/installed: pyproject.toml Makefile
	$(FLOOR_PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet uv
	$(FLOOR_VENV)/bin/uv pip install --quiet --python $(FLOOR_VENV)/bin/python --resolution lowest-direct \
		--editable . --group test
	touch $@

$(CLIENTS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --editable . --group test --group clients --group deployment
	touch $@

# Azurite is npm's; where that can't be reached, tests that need it are skipped and say so.
$(CLOUDS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(CLOUDS_VENV)
	$(CLOUDS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(CLOUDS_VENV)/bin/python -m pip install --quiet --editable . --group test --group clouds
	$(CLOUDS_VENV)/bin/python -m tests.cloud_servers
	touch $@

$(MUTANTS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(MUTANTS_VENV)
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --editable . --group mutants
	touch $@

$(DOCS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS_VENV)/bin/python -m pip install --quiet --group docs
	touch $@

$(TOOLS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(TOOLS_VENV)
	$(TOOLS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(TOOLS_VENV)/bin/python -m pip install --quiet --group package
	touch $@

$(BENCH_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable . --group bench
	touch $@

# With Azurite, as for the tests.
$(BENCH_CLOUDS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(BENCH_CLOUDS_VENV)
	$(BENCH_CLOUDS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH_CLOUDS_VENV)/bin/python -m pip install --quiet --editable . --group bench-clouds
	$(BENCH_CLOUDS_VENV)/bin/python -m tests.cloud_servers
	touch $@

clean:
	rm -rf $(VENV) $(NEXT_VENV) $(FLOOR_VENV) $(CLIENTS_VENV) $(CLOUDS_VENV) $(MUTANTS_VENV) $(BENCH_VENV) $(BENCH_CLOUDS_VENV) \
		$(DOCS_VENV) $(TOOLS_VENV) $(WHEEL_VENV) mutants build dist .mypy_cache .ruff_cache .pytest_cache
