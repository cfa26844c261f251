# A machine needs only Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready-
PEERS := .venv-peers
GPU := $(shell command -v nvidia-smi)
GPU_SIZES := --sizes=digits,8m,cifar10,imagenet64

.PHONY: demo bundled report test test-all torture setup lint bench peers clean

# glibc keeps the memory of a step's arrays for the next step, in one arena of large pages (docs/performance.md).
demo report bundled bench: export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1

demo: $(READY)run
	$(PY) main.py --config=configs/digits.py --workdir=runs/digits --mode=demo

# The model that comes with the package: what demo does with a narrower network, then its weights alone.
bundled: $(READY)run
	$(PY) main.py --config=configs/digits.py --workdir=runs/bundled --mode=demo --config.model.width=16 \
		--config.classifier.model.width=16 --config.train.steps=2000 --config.train.lr_schedule=cosine
	rm -rf guided_diffusion_jax/bundled/digits
	$(PY) main.py --workdir=runs/bundled --mode=export --export_path=guided_diffusion_jax/bundled/digits

report: $(READY)run
	$(PY) main.py --config=configs/digits_report.py --workdir=runs/digits_report --mode=report

# Two processes, a file of tests each: compiling keeps one core busy only.
test: $(READY)test
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(READY)test $(READY)slow
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ""

# Half an hour and more: runs that are killed, damaged, starved of disk and stopped must end as if nothing was.
torture: $(READY)test
	$(PY) -m tests.torture --kills=100 --corruptions=20 --full_disks=5 --sigterms=5

setup: $(READY)run $(READY)test $(READY)lint

lint: $(READY)lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/rumdl check .
	$(VENV)/bin/mypy

bench: $(READY)bench peers
	$(PY) -m benchmarks.run --out=runs/bench.json
	$(PY) -m benchmarks.run --suite=peers --out=runs/peers.json $(if $(GPU),$(GPU_SIZES))

# torch and diffusers in an environment of their own; without a GPU the build for CPUs, a tenth of the other's size.
peers: $(PEERS)/.ready

$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $< \
		$(if $(GPU),,--extra-index-url https://download.pytorch.org/whl/cpu)
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info

# One stamp a set of packages, so that the demo does not wait for the test tools.
$(READY)run: setup.cfg $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(READY)%: setup.cfg $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

$(PY):
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
