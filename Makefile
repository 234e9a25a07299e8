# make demo    register the shipped pair, or your own: make demo FIXED=a.nii.gz MOVING=b.nii.gz
# make test    everything that must hold: lint, format, types, tests
# make pictures  draw the pictures in Resources/Screenshots: slice views and the panel
# make docs    write the page of the Python interface from the docstrings
# make results DATA=folder   every method and the peers on public pairs: a page of figures
# make help    all commands and variables

PYTHON ?=
TORCH ?= cpu
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

VENV := .venv
BIN := $(VENV)/bin
SAMPLES := Resources/SampleData/hippocampus
OUT ?= build/demo
PICTURES ?= Resources/Screenshots
RESULTS ?= build/results

.PHONY: help demo test lint format types check pictures docs results clean distclean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo "make demo     install, then register the shipped pair of hippocampus images into $(OUT)"
	@echo "              your own: make demo FIXED=fixed.nii.gz MOVING=moving.nii.gz"
	@echo "              optional: FIXED_SEG= MOVING_SEG= (label maps)  PRESET=  OUT="
	@echo "make test     install, then ruff, mypy and pytest (JOBS=$(JOBS) at a time)"
	@echo "make lint, types, check   only that part: ruff and house rules / mypy / pytest"
	@echo "make pictures install, then draw slice views and the Slicer panel into $(PICTURES)"
	@echo "make docs     write Resources/docs/api.md from the docstrings"
	@echo "make results DATA=folder   install, then run what is missing of the page of results, and write it"
	@echo "              optional: PEER_PYTHON= (an interpreter with the peers)  RESULTS=$(RESULTS)  FLAGS=\"--set brain --plan\""
	@echo "make format   rewrite the sources in the project's format"
	@echo "make clean    remove what was built; make distclean: the environment too"
	@echo "PYTHON=path   which Python (3.11 or newer) makes the environment"
	@echo "TORCH=any     install the PyTorch that plain pip offers (CUDA on Linux) instead of the CPU build"

# --- environment -------------------------------------------------------------------------------------------
# Stamps lie inside the environment: deleting it deletes them.

# An environment whose Python was moved or removed is made anew; one that works is kept.
VENV_WORKS := $(shell $(BIN)/python -c 'import sys, pip; print(sys.version_info >= (3, 11))' 2>/dev/null)
ifneq ($(VENV_WORKS),True)
.PHONY: $(VENV)/.python
endif

$(VENV)/.python:
ifneq ($(VENV_WORKS),True)
	@python=$$(sh tools/find_python.sh $(PYTHON)) && echo "Making $(VENV) with $$python" \
	    && "$$python" -m venv --clear $(VENV)
endif
	@touch $@

$(VENV)/.torch-$(TORCH): $(VENV)/.python tools/install_torch.py
	@$(BIN)/python tools/install_torch.py --build $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch-$(TORCH) pyproject.toml
	@echo "Installing DiffeoReg"
	@$(BIN)/python -m pip install --quiet --editable '.[report,progress]'
	@touch $@

$(VENV)/.tests: $(VENV)/.torch-$(TORCH) pyproject.toml
	@echo "Installing DiffeoReg and what its tests need"
	@$(BIN)/python -m pip install --quiet --editable '.[tests]'
	@touch $@ $(VENV)/.demo

# What Qt and VTK load from the system: installed for root on Debian and Ubuntu, elsewhere said.
$(VENV)/.libraries: $(VENV)/.python tools/system_packages.py
	@$(BIN)/python tools/system_packages.py
	@touch $@

# --- demo --------------------------------------------------------------------------------------------------

ifeq ($(strip $(FIXED)$(MOVING)),)
demo: FIXED := $(SAMPLES)/images/hippocampus_006.nii.gz
demo: MOVING := $(SAMPLES)/images/hippocampus_138.nii.gz
demo: FIXED_SEG := $(SAMPLES)/labels/hippocampus_006.nii.gz
demo: MOVING_SEG := $(SAMPLES)/labels/hippocampus_138.nii.gz
demo: PRESET := brain-mr
else ifeq ($(strip $(FIXED)),)
$(error MOVING is given but not FIXED: make demo FIXED=fixed.nii.gz MOVING=moving.nii.gz)
else ifeq ($(strip $(MOVING)),)
$(error FIXED is given but not MOVING: make demo FIXED=fixed.nii.gz MOVING=moving.nii.gz)
endif

demo: $(VENV)/.demo
	@$(BIN)/python -m DiffeoRegLib register "$(FIXED)" "$(MOVING)" -o "$(OUT)" --overwrite \
	    $(if $(FIXED_SEG),--fixed-seg "$(FIXED_SEG)") $(if $(MOVING_SEG),--moving-seg "$(MOVING_SEG)") \
	    $(if $(PRESET),--preset "$(PRESET)")
	@echo "Pictures and numbers   $(OUT)/report.html"
	@echo "Numbers for programs   $(OUT)/report.json"
	@echo "Moved image            $(OUT)/moved.nii.gz"
	@$(if $(MOVING_SEG),echo "Moved labels           $(OUT)/moved_seg.nii.gz",:)
	@echo "Transform, inverse     $(OUT)/transform.h5  $(OUT)/inverse.h5  (3D Slicer, ANTs, SimpleITK)"

# --- checks ------------------------------------------------------------------------------------------------

test: lint types check

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/lint_architecture.py
	$(BIN)/python tools/check_index.py

types: $(VENV)/.tests
	$(BIN)/mypy

check: $(VENV)/.tests $(VENV)/.libraries
	OMP_NUM_THREADS=1 MPLBACKEND=Agg PYTHONWARNDEFAULTENCODING=1 $(BIN)/python -m pytest -n $(JOBS)

# No screen is needed: Qt draws into memory, VTK through EGL.
pictures: $(VENV)/.tests $(VENV)/.libraries
	OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen VTK_DEFAULT_OPENGL_WINDOW=vtkEGLRenderWindow \
	    PYTHONWARNDEFAULTENCODING=1 $(BIN)/python -m Testing.slicer.pictures "$(PICTURES)"

docs: $(VENV)/.python
	$(BIN)/python tools/write_api.py

# Rows that are there are kept: a run that was stopped goes on.
results: $(VENV)/.demo
	@PYTHONPATH=. $(BIN)/python Testing/benchmarks/results.py --out "$(RESULTS)" $(if $(DATA),--data "$(DATA)") \
	    $(if $(PEER_PYTHON),--peer-python "$(PEER_PYTHON)") $(FLAGS)

format: $(VENV)/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)
