"""Every package on disk is in the wheel."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hybridflow").rglob("__init__.py")}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == on_disk | {"hybridflow.checkpoints"}


def test_training_configurations_are_in_the_wheel():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in data["hybridflow.training"] for path in (ROOT / "hybridflow/training").glob(pattern)}
    assert shipped == set((ROOT / "hybridflow/training").rglob("*.yaml")) and shipped
