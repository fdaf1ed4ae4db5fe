"""Every package on disk is in the wheel."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hybridflow").rglob("__init__.py")}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == on_disk | {"hybridflow.checkpoints"}
