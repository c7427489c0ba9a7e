# One environment for everything: made once, from the versions in constraints.txt.
# An environment of your own instead: make test PYTHON=python (with the dev group installed).
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
BASE_PYTHON ?= python3
OUT ?= runs/quickstart

.PHONY: setup demo test browser check format

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[hf,flow,tensorboard,onnx]" --group dev
	touch $@

# `make demo` again goes on where it was stopped; ARGS="--regime same-data" adds to what it runs.
# The main job: real video files, teacher, student alone, student distilled, an honest comparison.
demo: $(if $(filter $(VENV)/%,$(PYTHON)),setup)
	$(PYTHON) -m videokd.cli quickstart --out $(OUT) $(if $(wildcard $(OUT)/quickstart.json),--resume) $(ARGS)

test: $(if $(filter $(VENV)/%,$(PYTHON)),setup) browser
	$(PYTHON) -m pytest --numprocesses 2 --dist worksteal --slow \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=90

# The report is tested in a real browser. In a container of one's own it is installed; elsewhere it is asked for.
browser:
	@command -v chromium >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
			&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "no chromium: tests of the report in a browser are skipped (Debian's package: chromium)"

check: $(if $(filter $(VENV)/%,$(PYTHON)),setup)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(if $(filter $(VENV)/%,$(PYTHON)),setup)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
