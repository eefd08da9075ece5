# make demo   the main job, end to end, on the embedded model: images in, masks of objects it never saw out
# make test   all tests, in two processes          make lint   style, types, spelling          make clean   remove .venv and builds
# make test-jazzy   the tests of the node on ROS 2 Jazzy, in .venv-jazzy; all others use ROS 2 Kilted
#
# Each target sets itself up in .venv. PYTHON=python3.12 chooses another interpreter (3.10 to 3.13);
# TORCH_ARGS="--index-url ..." takes torch from another index (say, one with CPU-only or other CUDA builds).

PYTHON ?= python3
TORCH_ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
ROS_WHEELS := pip_home/requirements.txt
OUT := demo_output

.PHONY: demo test test-jazzy lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ros
	$(VENV)/bin/ocdit render examples/meshes/*.glb --unit m --out $(OUT)/objects
	$(PY) -m ocdit_ros.demo --images examples/images --library $(OUT)/objects --out $(OUT)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

test-jazzy:
	$(MAKE) VENV=.venv-jazzy ROS_WHEELS=pip_home/jazzy.txt .venv-jazzy/.ros
	OMP_NUM_THREADS=1 .venv-jazzy/bin/python -m pytest -n 2 --dist loadfile test/ocdit_ros

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

clean:
	rm -rf $(VENV) .venv-jazzy build *.egg-info $(OUT)

# What pip cannot bring: a compiler and Python's headers (for the ROS messages), OpenGL without a display (EGL).
$(VENV)/.system:
	sh tools/system_libraries.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and alone: a range that another package asks for would fetch the newest build instead.
$(VENV)/.core: $(VENV)/.system constraints.txt setup.py
	$(PIP) install -c constraints.txt $(TORCH_ARGS) torch
	$(PIP) install -c constraints.txt -e ".[render,synthesize,train,dev]"
	touch $@

# ROS 2 itself, from wheels, and the two message packages that no wheel carries. On a robot colcon does this instead.
$(VENV)/.ros: $(VENV)/.core $(ROS_WHEELS) $(wildcard pip_home/*/msg/*) $(wildcard ocdit_interfaces/srv/*)
	$(PIP) install -c constraints.txt -r $(ROS_WHEELS)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) install --no-build-isolation --no-deps ./pip_home/tf2_msgs ./pip_home/vision_msgs
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) install --no-build-isolation --no-deps ./ocdit_interfaces
	touch $@

# What only tests need: the optional path tracer and engine are large.
$(VENV)/.test: $(VENV)/.ros
	$(PIP) install -c constraints.txt -e ".[mitsuba,ray,bag,cad,usd,assimp,meshopt,wandb,slurm,app,onnx,openvino]"
	touch $@
