# Two commands: `make study` and `make test`. Python 3.11 to 3.13 with venv, git and make are needed beforehand.
PYTHON ?= python3
BIN := .venv/bin
HOME_DIR ?= .

.PHONY: study test test-all lint docs install clean

# A CPU build of torch is a quarter of the default one; it is taken where pip can reach one.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --prefer-binary "torch>=2.9" \
	  || { echo "torch could not be installed: check the network or the package index" >&2; exit 1; }
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e '.[study,openvino,serve,plan,dashboard,test]'
	touch $@

install: .venv/installed

study: .venv/installed
	$(BIN)/leanrec data ml-100k --home $(HOME_DIR)
	$(BIN)/leanrec run ml-100k --home $(HOME_DIR)
	$(BIN)/leanrec report ml-100k --home $(HOME_DIR)
	$(BIN)/leanrec choose ml-100k --home $(HOME_DIR)
	$(BIN)/leanrec verify $(HOME_DIR)/reports/ml-100k/bundle

# The quick whole: a few minutes on two cores. A file's tests share what they build, so they stay in one process.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The quick whole, then everything else that needs neither the network nor other packages.
test-all: test
	$(BIN)/python -m pytest -m "slow and not nightly and not network and not loadgen and not foreign"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

clean:
	rm -rf .venv
