# Everything runs in .venv, made on first use. Another interpreter: make demo PYTHON=/path/to/python3.11

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
WORKERS ?= 2

.PHONY: help demo test kodak cid22val clean

help:
	@echo "make demo   compress three photos, print bpp, PSNR and LPIPS, leave the pictures in demo/"
	@echo "make test   run the tests, in WORKERS=$(WORKERS) processes"
	@echo "make kodak, make cid22val"
	@echo "            measure the checkpoint and the classical codecs on DATA=folder of that data set; README's table"
	@echo "make clean  remove .venv and demo/"

demo: $(VENV)/installed
	$(RUN) -m eval.demo

test: $(VENV)/installed-all
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

kodak cid22val: $(VENV)/installed-all
	$(RUN) -m eval.datasets $@ $(DATA)
	$(RUN) -m eval.vgg
	$(RUN) -m eval.run --data $(DATA) --workers $(WORKERS) -o build/results/$@
	$(RUN) -m eval.baselines --data $(DATA) --workers $(WORKERS) -o build/results/$@
	$(RUN) -m eval.readme build/results/$@

clean:
	rm -rf $(VENV) demo

$(VENV)/installed: pyproject.toml
	@echo "Installing into $(VENV): a few minutes the first time, PyTorch is large."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -e .
	touch $@

$(VENV)/installed-all: $(VENV)/installed
	$(RUN) -m pip install -q -e ".[test,train,eval]"
	touch $@
