# Everything runs in .venv, made on first use. Another interpreter: make demo PYTHON=/path/to/python3.11

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test clean

help:
	@echo "make demo   compress three photos, print bpp, PSNR and LPIPS, leave the pictures in demo/"
	@echo "make test   run the tests"
	@echo "make clean  remove .venv and demo/"

demo: $(VENV)/installed
	$(RUN) -m eval.demo

test: $(VENV)/installed
	$(RUN) -m pytest

clean:
	rm -rf $(VENV) demo

$(VENV)/installed: pyproject.toml
	@echo "Installing into $(VENV): a few minutes the first time, PyTorch is large."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -e ".[test]"
	touch $@
