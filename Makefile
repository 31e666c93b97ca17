# Every target sets up what it needs first, so that each works as the first command on a fresh machine.

VENV := .venv
PYTHON := $(VENV)/bin/python
SOURCES := pyproject.toml setup.py $(wildcard kmemd/core/*.py)
CAPTURES ?= tests/captures/linux-6.1
PYTEST_ARGS ?=

.PHONY: demo test check bench conformance clean

demo: $(VENV)/test.stamp
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh examples/demo.sh

test: $(VENV)/test.stamp
	$(PYTHON) -m pytest $(PYTEST_ARGS)

check: $(VENV)/test.stamp $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict -p kmemd
	$(PYTHON) -m pytest tests/test_layers.py

bench: $(VENV)/test.stamp $(VENV)/bench.stamp
	$(PYTHON) -m bench.run

conformance: $(VENV)/test.stamp
	$(VENV)/bin/kmemd conformance $(CAPTURES)

$(VENV)/test.stamp: $(SOURCES) scripts/setup.sh
	sh scripts/setup.sh test

$(VENV)/dev.stamp $(VENV)/bench.stamp: $(VENV)/%.stamp: pyproject.toml scripts/setup.sh
	sh scripts/setup.sh $*

clean:
	rm -rf $(VENV) build bench/bin .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f kmemd/core/*.c kmemd/core/*.so kmemd/core/*.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
