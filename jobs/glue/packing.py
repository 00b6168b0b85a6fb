"""What ``mmd submit`` sends: the code of the three packages and the files of settings, never data."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mmd
from mmd.errors import ClusterError

PACKAGES = ("mmd", "jobs", "serve_apps")
LIMIT_BYTES = 100 * 2**20
"""What Ray takes at most as a job's working directory."""
_SUFFIXES = frozenset({".py", ".html", ".css", ".js", ".svg", ".j2", ".json", ".yaml", ".typed"})
_LARGEST_NAMED = 5


@contextmanager
def packed_code(extra: Mapping[str, Path], root: Path | None = None) -> Iterator[Path]:
    """Yield a folder to run jobs in: the packages as they are on disk now, and files that the job reads.

    Args:
        extra: name in the folder → file.
        root: folder that holds the packages; by default that of the code that runs.

    Raises:
        ClusterError: there is no code there, or more than Ray takes.
    """
    root = root or Path(mmd.__file__).resolve().parents[1]
    files = code_files(root)
    if not files:
        raise ClusterError(f"{root}: holds no code of {', '.join(PACKAGES)}; --installed runs what the cluster has.")
    check_size(root, files)
    with tempfile.TemporaryDirectory(prefix="mmd-submit-") as folder:
        for file in files:
            target = Path(folder) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, target)
        for name, source in extra.items():
            shutil.copyfile(source, Path(folder) / name)
        yield Path(folder)


def code_files(root: Path) -> list[Path]:
    """Return the files of the packages, relative to ``root``, ordered.

    In a checkout: what git tracks, and modules that it does not know yet but would not ignore. Elsewhere, as where mmd
    is installed: every file of a kind that the packages are made of. Links are left out: they may lead to data.
    """
    listed = _listed_by_git(root)
    found = _walked(root) if listed is None else listed
    kept = {
        file
        for file in found
        if file.suffix in _SUFFIXES and (root / file).is_file() and not _passes_link(root, file.parts)
    }
    return sorted(kept)


def _listed_by_git(root: Path) -> list[Path] | None:
    if not (root / ".git").exists():
        return None
    try:
        tracked = _ls_files(root, "--cached")
        untracked = [file for file in _ls_files(root, "--others", "--exclude-standard") if file.suffix == ".py"]
    except (OSError, subprocess.SubprocessError):  # no git here, or not a checkout of ours
        return None
    return tracked + untracked


def _ls_files(root: Path, *options: str) -> list[Path]:
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        ["git", "ls-files", "-z", *options, "--", *PACKAGES],  # noqa: S607 (the user's git)
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return [Path(name) for name in done.stdout.split("\0") if name]


def _walked(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path.relative_to(root) for path in (root / package).rglob("*") if "__pycache__" not in path.parts)


def _passes_link(root: Path, parts: Iterable[str]) -> bool:
    path = root
    for part in parts:
        path /= part
        if path.is_symlink():
            return True
    return False


def check_size(root: Path, files: Iterable[Path], limit_bytes: int = LIMIT_BYTES) -> None:
    """Refuse more code than Ray takes.

    Raises:
        ClusterError: naming the largest files.
    """
    sizes = sorted(((file.stat().st_size, name) for name in files if (file := root / name)), reverse=True)
    total = sum(size for size, _ in sizes)
    if total <= limit_bytes:
        return
    largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:_LARGEST_NAMED])
    raise ClusterError(
        f"{root}: the code is {total / 2**20:.1f} MiB, more than the {limit_bytes / 2**20:.0f} MiB that Ray takes; the "
        f"largest files: {largest}. Move data out of the packages (it belongs in the store or in the corpus folder)."
    )
