# Every target makes .venv first if it is missing or out of date.
PY := .venv/bin/python
# Python, its kernels and its packages are those of .venv, whatever the shell was set up for.
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE
export PYTHONUTF8 := 1
# Everything a run writes outside the sources stays in build/: works for users without a home, too.
export JUPYTER_RUNTIME_DIR := $(CURDIR)/build/jupyter
export JUPYTER_CONFIG_DIR := $(CURDIR)/build/jupyter-config
export IPYTHONDIR := $(CURDIR)/build/ipython
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib
export HF_HOME := $(CURDIR)/build/huggingface
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# A thread that waits spends no processor time: two processes on two cores do not slow each other.
export OMP_WAIT_POLICY ?= passive

.PHONY: help venv book test parity notebooks studies lint bench model clean

help:
	@echo "make book       build the book and say where to open it"
	@echo "make test       run every test and every notebook"
	@echo "make notebooks  execute the notebooks whose text changed (ALL=1: all of them)"
	@echo "make studies    run the studies behind the figures whose rows are missing or stale"
	@echo "make lint       check the style of the code"
	@echo "make bench      time our code beside the libraries'"
	@echo "make model      make the shipped models from their recipes (somewhat over an hour on two cores)"
	@echo "make clean      remove what was built, keep .venv"

venv:
	@command -v python3 >/dev/null 2>&1 || { echo "Python is missing: install Python 3.11 or newer, then run make again." >&2; exit 1; }
	@python3 tools/setup_venv.py

book: venv
	@$(PY) tools/book.py

test: venv
	$(PY) -m ruff check .
	rm -rf build/parity
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(PY) tools/parity.py

parity: test
	$(PY) tools/parity.py --write

notebooks: venv
	$(PY) tools/notebooks.py $(if $(ALL),--all)

studies: venv
	$(PY) -m course_lib.studies

lint: venv
	$(PY) -m ruff check .

bench: venv
	$(PY) -m benchmarks

model: venv
	$(PY) -m course_lib.recipes.base
	$(PY) -m course_lib.recipes.instruct
	$(PY) -m course_lib.recipes.preference
	$(PY) -m course_lib.recipes.reasoning

clean:
	rm -rf _build build .pytest_cache .ruff_cache .hypothesis
