"""The API reference holds every module of the project."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

PACKAGES = ("mmd", "jobs", "serve_apps")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py"
}
FACADES = {
    name
    for name, path in SOURCES.items()
    if path.name == "__init__.py" and "__all__" in path.read_text(encoding="utf-8")
}
"""Packages that list their public names: these stand on the package's page, their modules have none."""
PUBLIC = {name for name in SOURCES if name.rpartition(".")[0] not in FACADES}


def test_the_reference_has_every_public_module(monkeypatch: pytest.MonkeyPatch):
    extract = pytest.importorskip("pdoc.extract")
    monkeypatch.syspath_prepend(str(ROOT))
    assert set(extract.walk_specs(PACKAGES)) == PUBLIC


def test_the_makefile_documents_these_packages():
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs:")[2].partition("\n\n")[0]
    assert rule.rstrip().endswith(" ".join(PACKAGES))
    assert "build/api" in (DOCS / "api.md").read_text(encoding="utf-8")


def test_the_page_names_packages_with_one_page_and_modules_that_have_theirs():
    words = (DOCS / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:mmd|jobs|serve_apps)(?:\.\w+)+)`", words))
    assert named >= FACADES
    assert named <= PUBLIC


def test_every_module_says_what_it_is_for():
    silent = [name for name, path in SOURCES.items() if ast.get_docstring(ast.parse(path.read_bytes())) is None]
    assert silent == []


@pytest.mark.slow
def test_the_reference_is_made_without_a_network(tmp_path: Path):
    options = ["-m", "pdoc", "--docformat", "google", "--output-directory", str(tmp_path)]
    done = subprocess.run([sys.executable, *options, *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {".".join(page.relative_to(tmp_path).with_suffix("").parts) for page in tmp_path.rglob("*.html")}
    assert pages >= PUBLIC
    index = (tmp_path / "mmd" / "errors.html").read_text(encoding="utf-8")
    assert "MmdError" in index
    assert 'src="http' not in index
