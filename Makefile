# Every target makes .venv first when it is missing or older than pyproject.toml.
PYTHON ?= python3
CUDA ?= cu13
BIN := .venv/bin

.PHONY: setup demo demo-detection doctor verify-resume gpu-check sync test test-all check types fast-tests format clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	@echo "make setup: a virtual environment in .venv with torch, torchvision, DALI ($(CUDA)), Hydra, W&B and what the tests use;"
	@echo "3 GB of downloads, 8 GB on disk, 2 to 10 minutes, once. Any target repeats it when pyproject.toml has changed."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$(CUDA),dev]'
	@touch $@

# Handwritten digits (no download): prepare, train a small CoTNet through DALI, evaluate its best checkpoint.
demo: setup
	$(BIN)/python -m data.prepare digits --out datasets/digits
	$(BIN)/python train.py experiment=digits output_dir=outputs/demo
	$(BIN)/python evaluate.py checkpoint=outputs/demo/checkpoints/best.pt output_dir=outputs/demo/evaluation

# A detector's small layers keep one thread busy, so two ranks share a CPU.
TWO_RANKS = $(shell nvidia-smi -L > /dev/null 2>&1 || echo launch.ranks=2)

# Drawn shapes (no download): train a small CoTNet with Mask R-CNN, evaluate its best checkpoint with pictures.
demo-detection: setup
	$(BIN)/python -m data.prepare shapes --out datasets/shapes
	$(BIN)/python train.py experiment=shapes $(TWO_RANKS) output_dir=outputs/demo-detection
	$(BIN)/python evaluate.py checkpoint=outputs/demo-detection/checkpoints/best.pt output_dir=outputs/demo-detection/evaluation

# What this machine has and what a run would use; make doctor ARGS="data=imagenet data.root=DIR" for another configuration.
doctor: setup
	@$(BIN)/python -m cotnet.doctor $(ARGS)

# A real run cut 20 times at random points, by SIGTERM and kill -9, against one never cut; make verify-resume ARGS="--cuts 40 ...".
verify-resume: setup
	$(BIN)/python -m data.prepare digits --out datasets/digits
	$(BIN)/python -m cotnet.verify_resume $(ARGS)

# Proves or refutes every claim made for GPUs: ten minutes on one GPU; without one, what a CPU can check in small, and exit code 2.
gpu-check: setup
	@$(BIN)/python -m cotnet.gpu_check $(ARGS)

# Uploads the W&B runs below outputs/ that were kept offline; make sync ARGS=FOLDER for another folder, ARGS="--rebuild FOLDER" writes a run's record anew.
sync: setup
	@$(BIN)/python -m cotnet.sync $(ARGS)

# mypy, which uses one core, runs beside the fast tests.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --output-sync -j 2 types fast-tests

types: setup
	$(BIN)/mypy

fast-tests: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not long"

# The tests that need a GPU follow where there is one; the others see none.
test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not long"
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' || $(BIN)/python -m pytest -q -m "gpu and not long"

# Also the long variants: about twice the time of make test.
test-all: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' || $(BIN)/python -m pytest -q -m gpu

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache
