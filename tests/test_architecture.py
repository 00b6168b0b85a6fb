"""The rules that keep the parts apart: jobs, serve_apps → mmd; mmd never imports Ray."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_domain_code_imports_without_ray():
    code = (
        "import pkgutil, sys, mmd\n"
        "for m in pkgutil.walk_packages(mmd.__path__, 'mmd.'): __import__(m.name)\n"
        "sys.exit('ray' in sys.modules)"
    )
    done = run_python(code, ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_everything_does_nothing(tmp_path: Path):
    """No file, no output, no network: an import only defines."""
    code = (
        "import pkgutil, socket, mmd, jobs, serve_apps\n"
        "def refuse(*a, **k): raise RuntimeError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "for p in (mmd, jobs, serve_apps):\n"
        "    for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.'):\n"
        "        if not m.name.endswith('__main__'): __import__(m.name)\n"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("mmd", {"ray", "jobs", "serve_apps"}), ("serve_apps", {"jobs"}), ("jobs", {"serve_apps"})],
)
def test_parts_meet_only_in_artefacts(folder: str, forbidden: set[str]):
    crossing = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / folder).rglob("*.py")
        for name in imported_packages(path)
        if name in forbidden
    }
    allowed = {("jobs/bench/harness.py", "serve_apps")}  # starts the service that benches measure, outside the pipeline
    assert crossing - allowed == set()


def test_nothing_unpickles():
    """Artefacts must not be able to run code; pickle is named only where it is refused."""
    loaders = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    users = {
        str(path.relative_to(ROOT))
        for folder in ("mmd", "jobs", "serve_apps")
        for path in (ROOT / folder).rglob("*.py")
        if loaders & set(imported_packages(path))
    }
    assert users == set()
