# `make demo` and `make test` need nothing else. `PORT` sets the port, `UIE_*` the service.
.PHONY: demo serve test test-qdrant lint fuzz lock env test-env clean
.DELETE_ON_ERROR:

export BENTOML_DO_NOT_TRACK := true
# If PYTHONDONTWRITEBYTECODE is set, as in many containers, each start would compile torch again.
export UV_COMPILE_BYTECODE := 1
PORT ?= 3000
FUZZ_SECONDS ?= 300

# Exactly one of onnxruntime and onnxruntime-gpu is installed: the latter if there is an NVIDIA GPU.
RUNTIME := $(shell if nvidia-smi -L >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
UV := .venv/bin/uv
PYTHON := .venv/bin/python

ifeq ($(RUNTIME),gpu)
demo serve: export UIE_PROVIDER ?= cuda
endif

demo: env
	$(PYTHON) -m benchmarks demo --port $(PORT)

serve: env
	$(PYTHON) -m service serve --port $(PORT)

test: test-env
	$(MAKE) --no-print-directory lint
	$(PYTHON) -m pytest --durations=20

# The index on a real Qdrant server, for example `docker run -p 6333:6333 qdrant/qdrant`. It makes and deletes
# collections named `test-*`.
QDRANT_URL ?= http://127.0.0.1:6333
test-qdrant: test-env
	QDRANT_URL=$(QDRANT_URL) $(PYTHON) -m pytest tests/service/test_index.py

# Without service processes, torch and network; tests/conftest.py has the rule.
.PHONY: test-unit
test-unit: test-env
	$(PYTHON) -m pytest --unit --durations=20

lint: test-env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Half of the time for the decoder, half for the live service; atheris writes its corpus to `runs/fuzz`.
fuzz: .venv/fuzz-$(RUNTIME).done
	$(PYTHON) -m tests.fuzz.images $$(($(FUZZ_SECONDS) / 2))
	$(PYTHON) -m tests.fuzz.api $$(($(FUZZ_SECONDS) / 2))

# Dependencies of serving and the harness, without torch. `test-env` adds the rest to the same environment.
# `serve-*.txt` is for serving only, in containers.
env: .venv/bench-$(RUNTIME).done
test-env: .venv/test-$(RUNTIME).done

# The other runtime is uninstalled first, because their files overwrite each other. An interrupted installation
# leaves no `.done` file.
OTHER := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
define WITHOUT_OTHER
	@if $(UV) pip show --quiet --python $(PYTHON) $(OTHER) 2>/dev/null; then rm -f .venv/*.done; \
		$(UV) pip uninstall --quiet --python $(PYTHON) onnxruntime onnxruntime-gpu; fi
endef

.venv/bench-%.done: requirements/bench-%.txt | $(UV)
	$(WITHOUT_OTHER)
	$(UV) pip install --quiet --python $(PYTHON) -r $<
	touch $@

.venv/test-%.done: requirements/test-%.txt | $(UV)
	$(WITHOUT_OTHER)
	$(UV) pip install --python $(PYTHON) -r $<
	touch $@ .venv/bench-$*.done

.venv/fuzz-%.done: requirements/fuzz.txt .venv/test-%.done
	$(UV) pip install --quiet --python $(PYTHON) -r $<
	touch $@

$(UV):
	python3 -m venv .venv
	.venv/bin/pip install --quiet uv==0.13.9

# No index addresses: a lock has versions and hashes, and any index that offers them can be used.
COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --python-version 3.11 pyproject.toml

# `test-*.txt` has all packages, and the other locks have its versions: what is installed is what was tested.
lock: | $(UV)
	for runtime in cpu gpu; do \
		tested=requirements/test-$$runtime.txt; \
		$(COMPILE) --extra $$runtime --extra bench --extra export --extra test -o $$tested && \
		$(COMPILE) --extra $$runtime -c $$tested -o requirements/serve-$$runtime.txt && \
		$(COMPILE) --extra $$runtime --extra bench -c $$tested -o requirements/bench-$$runtime.txt || exit 1; \
	done
	$(COMPILE) --extra fuzz -c requirements/test-cpu.txt -o requirements/fuzz.txt

clean:
	rm -rf .venv data runs
