# demo: one picture. test: every test. faults: 200 kills, and all else that must lose no picture. check: lint, types,
# floors. bench: every benchmark. tree: the package as it is installed, for type checkers and editors.
# Tests run file by file on all cores, one thread each: two processes of two threads on two cores take ten times as long.
# Another Python: make test PYTHON=python3.12
SHELL := bash -o pipefail
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PROMPT := two cats and a red balloon on the beach at sunset

.PHONY: demo test faults check bench tree clean

demo: $(VENV)/.installed
	@echo "the picture: $$($(BIN)/mmgen generate "$(PROMPT)" --size 1024 --seed 1)"

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --junit-xml=build/pytest.xml

faults: $(VENV)/.installed-test
	MMGEN_KILLS=200 $(BIN)/python -m pytest -rs --durations=5 tests/faults tests/render/test_folder.py tests/render/test_engine.py

check: $(VENV)/.installed-test tree
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(MYPY) && $(BIN)/python -m pytest tests/test_floors.py

bench: $(VENV)/.installed-test
	set -e; for script in benchmarks/*.py; do $(BIN)/python $$script; done

tree:
	rm -rf build/tree && mkdir -p build/tree/mmgen && ln -s $(foreach f,$(wildcard mmgen/*) $(MAPPED),../../../$f) build/tree/mmgen

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

MAPPED := schedulers pipelines cli
# mypy reports success over the two files it finds in the wrong place, so the number of files is checked too.
MYPY = (cd build/tree && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p mmgen \
	| tee ../mypy.txt && grep -q " $$(find -L mmgen -name '*.py' | wc -l) source files" ../mypy.txt)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An editable install: it is remade when pyproject.toml changes, and never for a change in the code.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e . && touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e ".[test]" && touch $(VENV)/.installed $@
