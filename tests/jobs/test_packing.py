"""What is sent with a job: code and settings, never data."""

import subprocess
from pathlib import Path

import pytest

from jobs.glue.packing import PACKAGES, check_size, code_files, packed_code
from mmd.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]


def make_tree(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = make_tree(
        tmp_path / "checkout",
        "mmd/__init__.py",
        "mmd/prompts/intent.j2",
        "jobs/ingest.py",
        "serve_apps/static/page.html",
        "docs/results/record.json",
        "tests/test_all.py",
        "README.md",
    )
    (root / ".gitignore").write_text("/artifacts/\n*.log\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    return root


def names(root: Path) -> list[str]:
    return [str(path) for path in code_files(root)]


def test_of_a_checkout_the_tracked_files_of_the_packages_are_sent(checkout: Path):
    assert names(checkout) == [
        "jobs/ingest.py",
        "mmd/__init__.py",
        "mmd/prompts/intent.j2",
        "serve_apps/static/page.html",
    ]


def test_a_new_module_is_sent_and_data_that_lies_in_a_package_is_not(checkout: Path):
    before = names(checkout)
    make_tree(checkout, "mmd/new.py", "mmd/photo.jpg", "mmd/dialogues.json", "jobs/run.log", "artifacts/corpus/x.py")
    assert set(names(checkout)) - set(before) == {"mmd/new.py"}


def test_what_git_tracks_but_is_no_code_or_gone_is_left_out(checkout: Path):
    make_tree(checkout, "mmd/weights.safetensors")
    git(checkout, "add", ".")
    (checkout / "jobs/ingest.py").unlink()
    assert "mmd/weights.safetensors" not in names(checkout)
    assert "jobs/ingest.py" not in names(checkout)


def test_links_are_not_followed(checkout: Path, tmp_path: Path):
    make_tree(tmp_path / "private", "customers.py")
    (checkout / "mmd/private").symlink_to(tmp_path / "private")
    (checkout / "mmd/customers.py").symlink_to(tmp_path / "private/customers.py")
    git(checkout, "add", ".")
    assert not [name for name in names(checkout) if "customers" in name]


def test_without_a_checkout_the_installed_packages_are_sent(tmp_path: Path):
    root = make_tree(
        tmp_path, "mmd/__init__.py", "mmd/__pycache__/x.py", "jobs/a.py", "torch/big.py", "mmd/data.parquet"
    )
    assert names(root) == ["jobs/a.py", "mmd/__init__.py"]


def test_a_folder_that_an_outer_checkout_ignores_is_read_itself(checkout: Path):
    """As a virtual environment in a checkout, which git knows nothing of."""
    site = make_tree(checkout / "artifacts/site-packages", "mmd/__init__.py")
    assert names(site) == ["mmd/__init__.py"]


def test_files_of_the_job_go_along_under_their_names_and_the_folder_goes_away(checkout: Path, tmp_path: Path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("seed: 7\n")
    with packed_code({"ray_config.yaml": settings}, checkout) as folder:
        assert (folder / "ray_config.yaml").read_text() == "seed: 7\n"
        assert (folder / "mmd/prompts/intent.j2").read_text() == "# mmd/prompts/intent.j2\n"
        assert not (folder / "README.md").exists()
    assert not folder.exists()


def test_too_much_code_is_refused_with_the_largest_files(tmp_path: Path):
    root = make_tree(tmp_path, "mmd/small.py")
    (root / "mmd/model.json").write_bytes(b"0" * 3 * 2**20)
    with pytest.raises(ClusterError, match=r"more than the 2 MiB that Ray takes; .* mmd/model\.json \(3\.0 MiB\), mmd"):
        check_size(root, code_files(root), limit_bytes=2 * 2**20)
    check_size(root, code_files(root))


def test_a_place_without_code_is_refused(tmp_path: Path):
    with (
        pytest.raises(ClusterError, match="holds no code of mmd, jobs, serve_apps; --installed"),
        packed_code({}, tmp_path),
    ):
        pass


def test_this_project_is_small_and_whole():
    """Every module can be found in what is sent, which is far below what Ray takes."""
    with packed_code({}) as folder:
        sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
        assert modules <= sent
        assert sum((folder / name).stat().st_size for name in sent) < 10 * 2**20
