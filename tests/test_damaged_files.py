"""Files that a disk or a person damaged: whoever reads them says one line or reads on, and overwrites nothing."""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import composed
from runs import TINY
from test_page import write_run

from dtp_lightning.cli import paths
from dtp_lightning.config.schema import checked
from dtp_lightning.errors import UserError
from dtp_lightning.export.writer import export
from dtp_lightning.loggers.metrics_csv import MetricsCSV
from dtp_lightning.pipeline import run as run_one
from dtp_lightning.report.alignment import stages_of
from dtp_lightning.report.cells import cells_of
from dtp_lightning.report.page import write_page
from dtp_lightning.report.text import conclusions, differences, table
from dtp_lightning.runs.checkpoint import Checkpoint
from dtp_lightning.runs.checkpoint_io import Progress, newest
from dtp_lightning.runs.folder import acquire
from dtp_lightning.runs.reader import read_runs, save_runs
from dtp_lightning.runs.status import ended, failures

COMMAND = (*TINY, "resume=true", "trainer.max_epochs=2", "evaluation=[knn]", "callbacks=[alignment]")
FILES = (
    "summary.json", "metrics.csv", "config.yaml", ".hydra/overrides.yaml", "checkpoints/last.ckpt",
    "checkpoints/previous.ckpt", "error.txt",
)  # fmt: skip
REPLACED = ("seed=0/metrics.csv", "seed=0/checkpoints/last.ckpt")
"""What a resumed run writes anew: rows of after the checkpoint go, a damaged checkpoint makes way for an older one."""


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) or 1)]


def shuffled(data: bytes, draw: random.Random) -> bytes:
    size = max(1, len(data) // 8)
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    draw.shuffle(blocks)
    return b"".join(blocks)


def bits_flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30])):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def lines_shuffled(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def noise(data: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(len(data))


def other(data: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        [b"", b"null\n", b"[]\n", b"{}\n", b"5\n", b"a,b\n1,2\n", b"\xff\xfe\x00", b"{a: [1, 2\n", data + data]
    )


DAMAGES = (truncated, shuffled, bits_flipped, lines_shuffled, noise, other)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, whose files are damaged, beside one that stays whole."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "seed=0" / ".hydra").mkdir(parents=True)
    (folder / "seed=0" / ".hydra" / "overrides.yaml").write_text("- seed=0\n- learner.target_step=2\n")
    run_one(*composed(*COMMAND), folder / "seed=0")
    (folder / "seed=0" / "error.txt").write_text("RunError: as it was\n")
    write_run(folder / "seed=1", "dtp", 1, 0.9, "seed=1")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def readers(folder: Path, out: Path, *, page: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Whoever reads run folders, and writes nothing into them."""
    run = folder / "seed=0"

    def report() -> None:
        runs = read_runs([folder])
        assert [each["seed"] for each in runs][-1] == 1, "the whole one is always there"
        differences(runs)
        table(runs, "test")
        conclusions(runs, "test")
        stages_of(cells_of(runs))
        if page:
            write_page(runs, out / "page.html", "A", failed=failures(folder))
        save_runs(runs, out / "runs.csv")

    yield "report", report
    yield "failures", lambda: (failures(folder), ended(folder))
    yield "last", lambda: paths.last_run(paths.SUMMARY, [str(folder)])
    yield "newest", lambda: newest(run)
    yield "checkpoint", lambda: Checkpoint.read(run / "checkpoints" / "last.ckpt").node("model")
    yield "export", lambda: export(run, out / "encoder.safetensors")


def resume(run: Path) -> None:
    """As far as a resumed run goes before it trains."""
    config = checked(composed(*COMMAND, "trainer.max_epochs=3")[0])
    with acquire(run, config) as state:
        if state.checkpoint is not None:
            MetricsCSV(run, Progress.read(state.checkpoint).step)


def tried(sweep: Path, folder: Path, examples: int, files: tuple[str, ...] = FILES, *, page: bool = True) -> list[str]:
    """What went wrong, over so many damages of each file and kind; each tenth of them is also put on a page."""
    wrong = []
    for name, damage, number in itertools.product(files, DAMAGES, range(examples)):
        draw, place = random.Random(f"{name} {damage.__name__} {number}"), folder / "runs"
        shutil.copytree(sweep, place)
        path = place / "seed=0" / name
        path.write_bytes(damage(path.read_bytes(), draw))
        for told in complaints(place, folder / "out", page=page and number % 10 == 0):
            wrong.append(f"{name}, {damage.__name__} {number}: {told}")
        shutil.rmtree(place)
    return wrong


def answer(read: Callable[[], object]) -> str | None:
    """What was said in one line; None if nothing was.

    Raises:
        AssertionError: it was more than a line, or an error of ours.
    """
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error), str(error)
        return str(error)
    except Exception as error:
        raise AssertionError("".join(traceback.format_exception(error)[-2:])) from error
    return None


def complaints(folder: Path, out: Path, *, page: bool) -> Iterator[str]:
    out.mkdir(exist_ok=True)
    before = hashes(folder)
    for name, read in readers(folder, out, page=page):
        try:
            answer(read)
            assert hashes(folder) == before, "it wrote into the folder"
        except AssertionError as error:
            yield f"{name}: {error}"
    try:
        refused = answer(lambda: resume(folder / "seed=0"))
        after = hashes(folder)
        assert refused is None or after == before, f"refused ({refused}), and something was overwritten"
        lost = [name for name, content in before.items() if content not in after.values() and name not in REPLACED]
        assert not lost, f"{lost} is gone"
    except AssertionError as error:
        yield f"resume: {error}"


@pytest.mark.usefixtures("no_pictures")
def test_some_damaged_files(sweep: Path, tmp_path: Path) -> None:
    assert (
        tried(sweep, tmp_path, 1, ("summary.json", "metrics.csv", "config.yaml", "checkpoints/last.ckpt"), page=False)
        == []
    )


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.usefixtures("no_pictures")
def test_many_damaged_files(sweep: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("tried", 30 * len(FILES) * len(DAMAGES))
    wrong = tried(sweep, tmp_path, 30)
    print(f"\n{30 * len(FILES) * len(DAMAGES)} damaged files, {len(wrong)} complaints")
    assert wrong == []
