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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs import ingest
from jobs.bench.apart import apart
from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import JobContext
from jobs.glue.records import spread, timed
from mmd.config import AppConfig, build_config
from mmd.corpora.images import check_image
from mmd.corpora.settings import LimitSettings
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError


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
    runs = [apart(ingest_shop, dialogues=size, store=str(folder / f"store-{size}")) for size in sizes]
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


def ingest_shop(dialogues: int, store: str, shop: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ingest a simulated shop and check that every record arrived.

    Args:
        dialogues: to be written.
        store: folder of the artefact.
        shop: other settings of ``data.shop``.
    """
    given = {"dialogues": dialogues, **(shop or {})}
    config = build_config({"store": store, "data": {"shop": given}})
    with ray_cluster(config.cluster):
        started = time.perf_counter()
        artifact = ingest.run(JobContext(config, options={}))
        ingest_s = time.perf_counter() - started
        spilled = spilled_bytes()
    arrived = check_arrival(Corpus(artifact), dialogues)
    return {
        "dialogues": dialogues,
        "pictures": artifact.manifest.metrics["images"],
        "ingest_s": ingest_s,
        "dialogues_per_s": dialogues / ingest_s,
        "spilled_bytes": spilled,
        "artefact_bytes": sum(file.stat().st_size for file in Path(store).rglob("*") if file.is_file()),
        **arrived,
    }


def spilled_bytes() -> int:
    """Return what Ray's object store has written to disk since the cluster started, for want of memory."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    state = get_state_from_address(address)  # type: ignore[no-untyped-call]  # upstream has no annotation
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)  # type: ignore[no-untyped-call]


def check_arrival(corpus: Corpus, dialogues: int) -> dict[str, Any]:
    """Read a shop corpus, shard by shard, and compare with what the simulator numbers its records.

    Returns:
        ``ids_all_there``: each number from 0 once, and no other; ``quarantined``; ``picture_mentions`` in dialogues;
        ``pictures_all_there``: each mentioned picture is stored, once.
    """
    seen = np.zeros(dialogues, np.int64)
    mentioned: set[str] = set()
    mentions = 0
    artifact = corpus.artifact
    for shard in artifact.shards("dialogues"):
        with artifact.fs.open(f"{artifact.root}/{shard}", "rb") as handle:
            table = pq.read_table(handle, columns=["id", "turns"])
        numbers = [int(name.removeprefix("shop-")) for name in table["id"].to_pylist()]
        np.add.at(seen, numbers, 1)
        shown = pc.list_flatten(pc.struct_field(pc.list_flatten(table["turns"]), "image_ids")).to_pylist()
        mentioned.update(shown)
        mentions += len(shown)
    stored = corpus.image_table(["id"])["id"].to_pylist()
    return {
        "ids_all_there": bool((seen == 1).all()),
        "quarantined": corpus.quarantine().num_rows,
        "picture_mentions": mentions,
        "pictures_all_there": len(set(stored)) == len(stored) and mentioned <= set(stored),
    }
