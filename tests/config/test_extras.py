"""A missing optional package is named with the extra that installs it; a broken one keeps its own error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loader.errors import HeadraceError, MissingDependencyError
from loader.extras import require


def test_an_installed_module_is_returned() -> None:
    assert require("json.decoder", extra="ray").__name__ == "json.decoder"


@pytest.mark.parametrize("module", ["headrace_missing_package", "headrace_missing_package.part"])
def test_a_missing_package_is_named_with_its_extra(module: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require(module, extra="ray")
    assert str(caught.value) == "headrace_missing_package is not installed and this needs it: pip install 'headrace[ray]'"
    assert isinstance(caught.value, HeadraceError)
    assert isinstance(caught.value, ImportError)


def test_a_package_that_breaks_inside_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headrace_broken.py").write_text("import headrace_missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "headrace_broken", raising=False)
    with pytest.raises(ModuleNotFoundError, match="headrace_missing_package") as caught:
        require("headrace_broken", extra="ray")
    assert not isinstance(caught.value, MissingDependencyError)
