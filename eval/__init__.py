"""Measuring codecs on real files. Run from the repository: `python -m eval.run --help`."""
