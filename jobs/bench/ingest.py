"""How fast ingest decodes and hashes pictures, next to a bare loop; and how time and memory grow with the corpus.

Throughput: the same JPEG files, once through ingest into a complete artefact (staged, merged, written, hashed), once
through Pillow and hashlib in as many bare processes; in turn, several times. The bare loop runs twice, once computing
every pixel and once with the check that ingest makes (see :func:`mmd.corpora.images.check_image`). ``--scale`` instead
ingests shop corpora of growing size in a fresh process each and samples the memory of all its processes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil

from jobs import ingest
from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import JobContext
from jobs.glue.records import spread, timed
from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig, build_config
from mmd.corpora.images import check_image
from mmd.corpora.settings import LimitSettings
from mmd.errors import ConfigError

_SAMPLE_S = 0.5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--photos", type=Path, help="folder of JPEG files to use instead of drawn ones")
    parser.add_argument("--pictures", type=int, default=4_000, help="pictures to draw")
    parser.add_argument("--width", type=int, default=640, help="width of drawn pictures, px")
    parser.add_argument("--height", type=int, default=480, help="height of drawn pictures, px")
    parser.add_argument("--copies", type=int, default=1, help="how often each of --photos is taken, made distinct")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side")
    parser.add_argument("--workers", type=int, default=2, help="processes of each side")
    parser.add_argument("--scale", type=int, nargs="+", metavar="N", help="sizes of shop corpora, in dialogues")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure throughput, or growth with ``scale``."""
    with tempfile.TemporaryDirectory(prefix="mmd-bench-") as folder:
        if options.get("scale"):
            return measure_scale(options["scale"], Path(folder))
        return measure_throughput(options, Path(folder))


def measure_throughput(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Time ingest and the bare loop on the same pictures, in turn."""
    root = folder / "corpus"
    files = copy_photos(options, root) if options.get("photos") else draw_photos(options, root)
    write_records(files, root)
    workers, repeats = options["workers"], options["repeats"]
    halves = [files[start::workers] for start in range(workers)]
    times: dict[str, list[float]] = {"ingest": [], "bare": [], "bare_check": []}
    config = corpus_config(root, folder / "store")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        started = time.perf_counter()
        with ray_cluster(config.cluster):
            startup_s = time.perf_counter() - started
            for repeat in range(repeats + 1):  # the first is warm-up: worker processes, imports, file cache
                work = JobContext(config.model_copy(update={"store": str(folder / f"store-{repeat}")}), options=options)
                times["ingest"].append(timed(partial(ingest.run, work)))
                times["bare"].append(timed(lambda: list(pool.map(decode_and_hash, halves))))
                times["bare_check"].append(timed(lambda: list(pool.map(check_and_hash, halves))))
    first_ingest_s = times["ingest"][0]
    kept = {side: values[1:] for side, values in times.items()}
    per_second = {side: [len(files) / t for t in values] for side, values in kept.items()}
    ratios = {
        side: spread([bare / job for job, bare in zip(kept["ingest"], kept[side], strict=True)])
        for side in ("bare", "bare_check")
    }
    sizes = [file.stat().st_size for file in files]
    return {
        "config": {
            "pictures": len(files),
            "megapixels": round(sum(_pixels(f) for f in files[:200]) / min(200, len(files)) / 1e6, 3),
            "mean_kb": round(sum(sizes) / len(sizes) / 1024, 1),
            "source": "photos" if options.get("photos") else "drawn",
            "workers": workers,
        },
        "warmup": 1,
        "repeats": repeats,
        "pictures_per_s": {side: spread(values) for side, values in per_second.items()},
        "ratio_ingest_to": ratios,
        "ray_startup_s": startup_s,
        "cold_ratio": kept["bare"][0] / (first_ingest_s + startup_s),
        "note": "ratio: Ray is up, pools are made in every run; cold_ratio: Ray's start and first run included",
    }


def decode_and_hash(files: Sequence[Path]) -> int:
    """Read, hash and decode files: the least that any ingest must do."""
    for file in files:
        data = file.read_bytes()
        hashlib.sha256(data).hexdigest()
        PIL.Image.open(io.BytesIO(data)).load()
    return len(files)


def check_and_hash(files: Sequence[Path]) -> int:
    """Read and hash files and decode them the way ingest does."""
    for file in files:
        data = file.read_bytes()
        hashlib.sha256(data).hexdigest()
        check_image(data, LimitSettings())
    return len(files)


def draw_photos(options: Mapping[str, Any], root: Path) -> list[Path]:
    """Draw pictures with the detail of photographs: blurred noise at several scales."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    size = (options["width"], options["height"])
    files = []
    for number in range(options["pictures"]):
        pixels = np.zeros((size[1], size[0], 3), dtype=np.float32)
        for cells, weight in ((4, 0.6), (24, 0.25), (160, 0.15)):
            noise = PIL.Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += weight * np.asarray(noise.resize(size, PIL.Image.Resampling.BICUBIC), dtype=np.float32)
        files.append(root / "images" / f"{number}.jpg")
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1], quality=88)
    return files


def copy_photos(options: Mapping[str, Any], root: Path) -> list[Path]:
    """Copy JPEG files; copies differ in a trailing number, which decoders ignore.

    Raises:
        ConfigError: the folder holds no JPEG files.
    """
    (root / "images").mkdir(parents=True)
    found = sorted(p for p in options["photos"].glob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise ConfigError(f"--photos {options['photos']}: holds no .jpg files; name a folder that does.")
    files = []
    for copy in range(options["copies"]):
        for photo in found:
            files.append(root / "images" / f"{copy}-{photo.name}")
            files[-1].write_bytes(photo.read_bytes() + (b"" if copy == 0 else str(copy).encode()))
    return files


def write_records(files: Sequence[Path], root: Path) -> None:
    """Write one conversation a picture."""
    with (root / "train.jsonl").open("w", encoding="utf-8") as out:
        for number, file in enumerate(files):
            shown = {"type": "image_url", "image_url": {"url": f"images/{file.name}"}}
            content = [{"type": "text", "text": f"Do you have number {number}?"}, shown]
            out.write(json.dumps({"id": str(number), "messages": [{"role": "user", "content": content}]}) + "\n")


def corpus_config(root: Path, store: Path) -> AppConfig:
    """Return the default settings for a chat corpus."""
    return build_config(
        {"store": str(store), "data": {"corpus": {"name": "bench", "reader": "chat", "path": str(root)}}}
    )


def _pixels(file: Path) -> int:
    with PIL.Image.open(file) as picture:
        return picture.width * picture.height


def measure_scale(sizes: Sequence[int], folder: Path) -> dict[str, Any]:
    """Ingest shop corpora of several sizes, each in a fresh process."""
    runs = [ingest_measured(size, folder / f"store-{size}") for size in sizes]
    first, last = runs[0], runs[-1]
    times = last["dialogues"] / first["dialogues"]
    return {
        "config": {"corpus": "shop, default settings", "sizes": list(sizes)},
        "warmup": 0,
        "repeats": 1,
        "runs": runs,
        "time_growth_over_size_growth": last["seconds"] / first["seconds"] / times,
        "cpu_growth_over_size_growth": last["cpu_s"] / first["cpu_s"] / times,
        "note": "seconds and cpu_s include interpreter and Ray start; cpu_s and peak_pss_gb sum over all processes of "
        "the run; 1 is linear growth, and cpu_s shows it even while other work competes for the cores",
    }


def ingest_measured(dialogues: int, store: Path) -> dict[str, Any]:
    """Run ``jobs.ingest`` on a shop corpus and sample the memory of its process tree.

    Raises:
        ConfigError: the job failed; its output says why.
    """
    command = [sys.executable, "-m", "jobs.ingest", "--set", f"data.shop.dialogues={dialogues}"]
    command += ["--set", f"store={store}", "--corpus", "shop"]
    started = time.perf_counter()
    log = store.parent / f"{store.name}.log"
    with log.open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)  # noqa: S603 (our own job)
        peak_pss = peak_one = 0
        cpu_s: dict[int, float] = {}
        while job.poll() is None:
            tree = _tree(job.pid)
            each = [_pss(process) for process in tree]
            cpu_s |= {process.pid: _cpu_s(process) or cpu_s.get(process.pid, 0.0) for process in tree}
            peak_pss, peak_one = max(peak_pss, sum(each)), max([peak_one, *each])
            time.sleep(_SAMPLE_S)
    seconds = time.perf_counter() - started
    if job.returncode:
        raise ConfigError(f"ingest of {dialogues} dialogues failed:\n{log.read_text()[-2000:]}")
    metrics = ArtifactStore(str(store)).open("corpus/shop", verify=False).manifest.metrics
    return {
        "dialogues": dialogues,
        "pictures": metrics["images"],
        "seconds": seconds,
        "cpu_s": sum(cpu_s.values()),
        "dialogues_per_s": dialogues / seconds,
        "peak_pss_gb": peak_pss / 2**30,
        "peak_pss_of_one_process_gb": peak_one / 2**30,
    }


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return float(times.user + times.system)


def _pss(process: psutil.Process) -> int:
    """Return a process's proportional set size in bytes: shared pages count once over all processes."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
