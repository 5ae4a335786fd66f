# Everything runs in .venv, which the first target that needs it sets up from requirements.lock.
# SYSTEM_PYTHON: the interpreter to start from, 3.11 or later.
SYSTEM_PYTHON ?= python3
BIN := .venv/bin
# PYTEST_OPTIONS: further options for the tests, such as --cov, which prints the coverage of each file.
PYTEST_OPTIONS ?=
# Idle threads sleep instead of spinning: with more workers than cores, spinning ones starve the rest.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check format docs dist lock clean

demo: .venv/ready
	$(BIN)/proxygml demo

# Four workers on two cores: many tests wait for servers and for other processes.
test: .venv/ready
	$(BIN)/python -m pytest -n 4 --dist loadgroup $(PYTEST_OPTIONS)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready
	$(BIN)/zensical build --strict --clean

# The wheel and the source distribution, into dist/, and what they must contain.
dist: .venv/ready
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python --no-build-isolation --out-dir dist
	$(BIN)/python .ci/check_dist.py dist

.venv/ready: requirements.lock pyproject.toml
	$(SYSTEM_PYTHON) -c 'import sys; sys.exit("proxygml needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(SYSTEM_PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

lock: .venv/ready
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --all-extras pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .cache .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist site
