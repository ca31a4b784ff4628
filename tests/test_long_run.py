"""2,000 epochs: what grows with them is what is logged, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import long_run
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_two_thousand_epochs(tmp_path: Path) -> None:
    samples = long_run.run(2000, tmp_path)
    slopes = {quantity: long_run.slope(samples, quantity) for quantity in long_run.QUANTITIES}
    said = "memory {memory:+.1f} KiB, open files {files:+.2f}, disk {disk:+.1f} KiB a hundred epochs"
    print(f"\n{said.format(**slopes)}")
    assert len(samples) == 200
    assert slopes["memory"] < 100, "KiB a hundred epochs"
    (files, often), *_ = Counter(s.files for s in samples).most_common(1)
    assert often > 190 and samples[-1].files == files, "open files stay"
    logged = (tmp_path / "run" / "metrics.csv").stat().st_size / 2**10
    assert samples[-1].disk - samples[1].disk < logged + 10, "KiB; only metrics.csv grows"
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
