# Every target works in a fresh clone: the first one creates .venv and installs what constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Tests run in two processes of one thread each: torch's own threads would only fight for the same cores.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1
# Schemathesis is called as a library; its plugin would be imported by every process of the tests.
PYTEST := $(ONE_THREAD) $(BIN)/pytest -p no:schemathesis
# Bytecode is written, also where the environment says otherwise: later runs, and programs that tests start, read it.
unexport PYTHONDONTWRITEBYTECODE
# Makes oneDNN and PyTorch treat an x86 processor as one with AVX2 alone, which imitates bfloat16.
# Inductor's own cache does not tell kernels for the one from those for the other: a mixture gives NaN.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/out/inductor-avx2
# What must hold on such a processor too, and differs there.
ON_AVX2 := tests/test_processor.py tests/attention/test_choose.py tests/nn/test_matmul.py tests/vae/test_precision.py \
	tests/vae/test_tiling.py
# Strict: a name that moved or a link to nothing is an error. The variable silences an advertisement that
# mkdocs-material prints at every build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
# What is hardly imported, and compiled when it is.
RARELY := /(tests?|testing|transformers/models|diffusers/(modular_)?pipelines|openai|pip|setuptools|fontTools|textual)/
RARELY := $(RARELY)|/(networkx|sympy/(physics|combinatorics)|torch/_inductor|sqlalchemy/orm|pygments/lexers|sklearn)/
# Of pip's settings, those that say where packages come from; the last one counts.
PIP_SETTING = $$($(PIP) config list | sed -n "s/^[^=]*\.$(1)='\(.*\)'$$/\1/p" | tail -n 1)
FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
CHROMIUM := /usr/bin/chromium

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-avx2 lowest fuzz api-fuzz mutants bits planted-faults memory-soak store-soak soak soak-postgresql load check format bench bench-openvino digits emoji evaluate docs clean attention-maps planted-edits test-page test-ray page studio-pictures debug-cost healthy-runs

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## *(.*)/  make \1\t\2/' | expand -t 20

DEVELOPMENT := --constraint constraints.txt --no-build-isolation --editable '.[dev,docs]'
# Installed once, and again whenever the requirements change. The build backend comes first and builds in this
# environment, so that it is pinned like everything else.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt hatchling editables uv
	@# uv needs a quarter of pip's time, and reads none of its settings; where it finds no way, pip goes its own.
	@links="$(call PIP_SETTING,find-links)" index="$(call PIP_SETTING,index-url)" cert="$(call PIP_SETTING,cert)"; \
	env UV_FIND_LINKS="$$links" $${index:+UV_DEFAULT_INDEX="$$index"} $${cert:+SSL_CERT_FILE="$$cert"} \
		$(BIN)/uv pip install --quiet --python $(BIN)/python $(DEVELOPMENT) \
	|| $(PIP) install --quiet --no-compile $(DEVELOPMENT)
	@# The tests compare with its samplers alone; its requirements (a tracker, a metrics package, CLIP) are for training.
	$(PIP) install --quiet --constraint constraints.txt --no-deps k-diffusion
	@# pip would compile one file after another; half of them nobody here imports.
	@$(BIN)/python -m compileall -q -j 2 -x '$(RARELY)' $(VENV)/lib > /dev/null || true
	@touch $@

demo: $(INSTALLED)  ## Draw a red apple with the embedded model and write the picture; QUICK=1 in 4 steps
	$(BIN)/undertow generate "red apple on white background"$(if $(QUICK), --model emoji-turbo)

# What the emoji recipe draws its pictures with. Without it, and without the right to install it, its tests are skipped.
$(FONT):
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get install -qq -y fonts-noto-color-emoji > /dev/null \
		|| (apt-get update -qq && apt-get install -qq -y fonts-noto-color-emoji > /dev/null); \
	else \
		echo "not installed: $(FONT) (Debian: fonts-noto-color-emoji); tests of the emoji recipe are skipped"; \
	fi

# What the studio is opened with in tests; without it they are skipped.
$(CHROMIUM):
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get install -qq -y --no-install-recommends chromium > /dev/null \
		|| (apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null); \
	else \
		echo "not installed: $(CHROMIUM) (Debian: chromium); tests of the studio are skipped"; \
	fi

test: $(INSTALLED) | $(FONT) $(CHROMIUM)  ## Run the tests, and those that the processor matters to as on an older one
	$(PYTEST) -m "not slow" --numprocesses $(WORKERS) --dist worksteal
	@# torch.compile cannot trace jaxtyping's checks, so these run without the options of pyproject.toml.
	$(PYTEST) --numprocesses $(WORKERS) --dist worksteal --override-ini addopts= --import-mode=importlib -m "not slow" tests/compile
	$(AVX2) $(PYTEST) --numprocesses $(WORKERS) --dist worksteal $(ON_AVX2)

test-slow: $(INSTALLED) | $(FONT) $(CHROMIUM)  ## Run what `make test` leaves out since it takes many seconds
	$(PYTEST) -m slow --numprocesses $(WORKERS) --dist worksteal
	$(PYTEST) --override-ini addopts= --import-mode=importlib -m slow tests/compile

test-page: $(INSTALLED) | $(CHROMIUM)  ## Do in headless Chromium all that people do with the studio
	$(PYTEST) tests/page

# The built files are committed: nobody else needs Node.js.
page:  ## Build the studio of page/ into the package (needs Node.js 20)
	cd page && npm ci --no-audit --no-fund && npm run build

studio-pictures: $(INSTALLED) | $(CHROMIUM)  ## Try the studio as a new user, and take the pictures of docs/guides/studio
	$(ONE_THREAD) $(BIN)/python -m benchmarks.studio --out docs/guides/studio

# Its packages stand aside of ours: nothing but these tests needs them. Each process of Ray imports them anew.
RAY := out/ray
$(RAY): pyproject.toml constraints.txt | $(INSTALLED)
	$(PIP) install --quiet --upgrade --constraint constraints.txt --target $@ 'ray[serve]'
	@touch $@

test-ray: $(INSTALLED) $(RAY)  ## Kill, drain and scale replicas of Ray Serve on this machine
	PYTHONPATH=src:.:$(RAY) $(PYTEST) --override-ini addopts= --import-mode=importlib tests/ray

test-avx2: $(INSTALLED) | $(FONT)  ## Run every test as on a processor with AVX2 alone
	$(AVX2) $(PYTEST) --numprocesses $(WORKERS) --dist worksteal
	$(AVX2) $(PYTEST) --override-ini addopts= --import-mode=importlib tests/compile

# On Linux PyPI's torch brings CUDA, 3 GB; UV_FIND_LINKS and UV_CONSTRAINT take another one.
LOWEST := out/lowest
UV := $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct
lowest:  ## Install the oldest packages that pyproject.toml allows, into out/lowest, and draw and train with them
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) .
	$(LOWEST)/bin/undertow generate "red apple on white background" --lora mosaic --out $(LOWEST)/drawn --no-show
	$(UV) '.[train,hints,terminal,viz]'
	$(LOWEST)/bin/undertow preprocess canny $(LOWEST)/drawn/*.png --out $(LOWEST)/canny.png
	$(LOWEST)/bin/undertow train digits --steps 1 --batch-size 2 --cpu --out $(LOWEST)/digits
	$(LOWEST)/bin/undertow samplers --plot $(LOWEST)/grids.png
	$(LOWEST)/bin/python -c 'import textual_image'

# Hours for every mutant (COUNT=0); minutes for a sample.
ROOMS ?= diffusion sampling nn unet engine
COUNT ?= 120
SEED ?= 0
mutants: $(INSTALLED)  ## Change a sample of lines, one at a time, and write how many a test notices: docs/results/tests.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.mutants --rooms $(ROOMS) --count $(COUNT) --seed $(SEED) --workers $(WORKERS)

MINUTES ?= 10
fuzz: $(INSTALLED)  ## Run command lines of strangers for ten minutes, and write the counts: docs/results/robustness.md
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz --minutes $(MINUTES) --results docs/results/robustness.md

EXAMPLES ?= 200
api-fuzz: $(INSTALLED)  ## Send generated requests to every route of the service, EXAMPLES=200 of each kind
	UNDERTOW_API_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/serving/api/test_fuzz.py

AGAINST ?= HEAD
bits: $(INSTALLED)  ## Draw 24 requests as this tree and as AGAINST=REVISION does, and name those that differ in a bit
	$(ONE_THREAD) $(BIN)/python -m benchmarks.bits --against $(AGAINST)

planted-faults: $(INSTALLED)  ## Plant 900 faults in tiny models, and see each named: docs/results/planted-faults.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.planted_faults --page docs/results/planted-faults.md

SEQUENCES ?= 300
debug-cost: $(INSTALLED)  ## Time with each watch on, over time with none: docs/results/debug-cost.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.debug_cost

healthy-runs: $(INSTALLED)  ## Ask the doctor about a hundred healthy requests: docs/results/healthy-runs.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.healthy_runs

planted-edits: $(INSTALLED)  ## Plant a hundred edits of one layer, and write whether `undertow diff` names them
	$(ONE_THREAD) $(BIN)/python -m benchmarks.planted_edits --out docs/results/planted-edits.md

memory-soak: $(INSTALLED)  ## Draw random sequences short of memory, and compare every byte with a fresh process
	$(ONE_THREAD) $(BIN)/python -m benchmarks.memory_soak --sequences $(SEQUENCES) --workers $(WORKERS)

HISTORIES ?= 2000
store-soak: $(INSTALLED)  ## Run thousands of random histories of the store of jobs beside a model, on both databases
	UNDERTOW_STORE_EXAMPLES=$(HISTORIES) $(PYTEST) -p no:cacheprovider tests/serving/test_store_states.py

JOBS ?= 2000
KILLS ?= 200
soak: $(INSTALLED)  ## Kill a running service at random moments, and compare every byte with one that nobody disturbs
	$(ONE_THREAD) $(BIN)/python -m benchmarks.serving.soak --jobs $(JOBS) --kills $(KILLS) --page docs/results/serving.md

soak-postgresql: $(INSTALLED)  ## The same on a server of PostgreSQL that is killed too
	$(ONE_THREAD) $(BIN)/python -m benchmarks.serving.soak --postgresql --jobs $(JOBS) --kills $(KILLS) \
		--page docs/results/serving.md

# A peer that undertow is measured beside; its packages stand aside of ours.
LITSERVE := out/peers/litserve
$(LITSERVE): | $(INSTALLED)
	$(PIP) install --quiet --constraint constraints.txt --target $@ litserve

bench-openvino: $(INSTALLED)  ## Time the U-Net beside OpenVINO's of the same weights
	$(ONE_THREAD) $(BIN)/python -m benchmarks.unet --mode openvino

load: $(INSTALLED) $(LITSERVE)  ## Ask a running service for unlike pictures, at loads up to 1.5 of its capacity: docs/results/serving.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.serving.load --page docs/results/serving.md

attention-maps: $(INSTALLED) | $(FONT)  ## Measure whether heat lies where emoji are, and what hiding words removes: docs/results/attention-maps.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.attention_maps

# Two at a time: none of them uses more than one core.
CHECKS := check-style check-types check-layers check-docs
.PHONY: $(CHECKS)
check: $(INSTALLED)  ## Check format, lint, types, the layers of the architecture, and that the documentation builds
	@$(MAKE) --no-print-directory --jobs 2 --output-sync $(CHECKS)

check-style: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

check-types: $(INSTALLED)
	@# With Node's usual 4 GB it empties its caches eight times over, and takes half as long again.
	NODE_OPTIONS=--max-old-space-size=8192 $(BIN)/pyright

check-layers: $(INSTALLED)
	@# Its cache outlives a module that was added or moved, and then reports imports that are not there.
	$(BIN)/lint-imports --no-cache

check-docs: $(INSTALLED)
	$(MKDOCS) --quiet --site-dir $(CURDIR)/out/site-checked

format: $(INSTALLED)  ## Format the code and fix what the linter can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED)  ## Time undertow beside its peers and print the ratios
	@for benchmark in benchmarks/[a-z]*.py; do echo "== $$benchmark"; PYTHONPATH=. $(BIN)/python $$benchmark || exit 1; done

digits: $(INSTALLED)  ## Train both digit models, measure them and write docs/results/digits.md (half an hour)
	$(BIN)/python -m recipes.digits

emoji: $(INSTALLED)  ## Train the shipped text-to-image model into out/emoji/run, going on where it stopped (hours)
	$(BIN)/python -m recipes.emoji train --crisp --out out/emoji/run

evaluate: $(INSTALLED)  ## Measure the shipped text-to-image model beside diffusers and write docs/results/emoji.md (an hour)
	$(BIN)/python -m recipes.emoji.measure_diffusers --out out/emoji/diffusers.json
	$(BIN)/python -m recipes.emoji evaluate --diffusers out/emoji/diffusers.json --card \
		$(if $(wildcard out/emoji/run),--run out/emoji/run)

docs: $(INSTALLED)  ## Build the documentation into site/
	$(MKDOCS)

clean:  ## Remove what the other targets made, the environment included
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
