PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types bench faults docs screenshots lock clean

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(f"ctr needs Python 3.11 or newer; this is {sys.version.split()[0]}: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	rm -rf *.egg-info  # a stale one would shadow the installed entry points for whoever starts Python here
	@touch $@

demo: $(VENV)/installed
	$(BIN)/ctr run specs/quickstart.yaml

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

faults: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow tests/faults

bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r requirements-bench.lock
	$(BIN)/python -m tests.bench

docs: $(VENV)/installed
	$(BIN)/python -m tests.gallery
	$(BIN)/python -m pip install --quiet 'mkdocs>=1.6,<2'
	$(BIN)/mkdocs build --quiet --site-dir build/site

screenshots: $(VENV)/installed
	$(BIN)/python -m tests.screenshots

lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --group bench -c requirements.lock -o requirements-bench.lock pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info
