"""What the manifest of a checkpoint takes, beside writing the files: `python -m benchmarks.manifest`.

A model, its optimizer's state and the inner set of so many MiB are written as a save writes them, then the manifest;
medians of four. Nothing of the host runs. Results: benchmarks/manifest.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from scalebio_plugin.training.manifest import write_manifest

TENSORS, REPEATS = 8, 4
SMALL = ("trainer_state.json", "config.json", "rng_state.pth", "scheduler.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 30, 300, 2000], help="of the model; times 4 in all")
    print("| checkpoint, MiB | files written in, s | manifest, ms | of the files |\n|---|---|---|---|")
    for mib in parser.parse_args().mib:
        files, manifest = (statistics.median(of) for of in zip(*(measured(mib) for _ in range(REPEATS)), strict=True))
        print(f"| {4 * mib:,} | {files:.3f} | {1e3 * manifest:.1f} | {manifest / files:.2%} |", flush=True)


def measured(mib: int) -> tuple[float, float]:
    """Seconds of the files and of the manifest."""
    each = mib * (1 << 18) // TENSORS  # float32
    model = {f"weight{i}": torch.randn(each) for i in range(TENSORS)}
    state = {i: {"exp_avg": torch.randn(each), "exp_avg_sq": torch.randn(each)} for i in range(TENSORS)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        (checkpoint / "scalebio").mkdir()
        began = time.perf_counter()
        save_file(model, checkpoint / "model.safetensors")
        torch.save({"state": state}, checkpoint / "optimizer.pt")
        for name in SMALL:
            (checkpoint / name).write_text("x" * 2000)
        save_file(model, checkpoint / "scalebio" / "inner.safetensors")
        with (checkpoint / "scalebio" / "inner.safetensors").open("rb") as inner:
            os.fsync(inner.fileno())  # as ours are
        written = time.perf_counter()
        write_manifest(checkpoint, step=1, ranks=1)
        return written - began, time.perf_counter() - written


if __name__ == "__main__":
    main()
