"""README, pages and examples: links lead somewhere, commands and code run, the site builds without a network."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from conftest import ROOT, composed, options

from dtp_lightning.cli.main import VERBS
from dtp_lightning.cli.sweeps import known
from dtp_lightning.config.schema import checked

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    if ".venv" not in path.parts
)
WRITTEN = [ROOT / "README.md", ROOT / "docs" / "concepts.md", *(ROOT / "docs" / "guides").glob("*.md"),
           *(ROOT / "docs" / "start").glob("*.md")]  # fmt: skip


def text_of(page: Path) -> str:
    """Without code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} leads nowhere"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{target}: no such heading"


def test_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("group", sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir()))
def test_every_option_is_told(group: str) -> None:
    """docs/start/choosing.md names the options of every group, and the page of the losses each loss."""
    pages = [ROOT / "docs" / "start" / "choosing.md", *([ROOT / "docs/losses/README.md"] if group == "loss" else [])]
    for page in pages:
        told = set(re.findall(r"[\w/]+", " ".join(re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8")))))
        missing = set(options(group)) - told
        assert not missing, f"{page.relative_to(ROOT)} does not name {missing}"


def commands() -> list[str]:
    """Lines of code blocks that call ``dtp`` or ``make``, without comments."""
    command = re.compile(r"^ {4}((?:dtp(?! x )|make) +[^\s#][^#\n]*)", re.MULTILINE)  # "dtp x hinge" is a run's title
    lines = [line for page in WRITTEN for line in command.findall(page.read_text(encoding="utf-8"))]
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_pages_exist(line: str) -> None:
    """Verbs, targets and sweeps exist; the configuration that a training names is valid."""
    program, first, *words = shlex.split(line.split(";")[0].split(" | ")[0].replace("=~", "="))
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert {word for word in (first, *words) if "=" not in word} - {"..."} <= targets
        return
    assert first in VERBS
    if first == "sweep" and words and "/" not in words[0]:
        assert words[0] in known()
    if first == "train" and not {"--help", "--config-dir"} & {*words} and "..." not in words:
        given = [word for word in words if not word.startswith(("-", "hydra", "resume"))]
        sweep = "-m" in words
        checked(composed(*(word.split(",")[0] if sweep and "[" not in word else word for word in given))[0])


@pytest.mark.parametrize("page", [page for page in WRITTEN if "```python" in page.read_text()], ids=lambda p: p.stem)
def test_code_of_the_pages_runs(page: Path) -> None:
    """The blocks of a page, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    scope: dict = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), scope)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, made short; what is committed ran whole, in order and without an error."""
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    source = "\n".join("".join(cell["source"]) for cell in code)
    for long, short in (
        ("STEPS = 150 ", "STEPS = 2 "),
        ("EVERY = 15 ", "EVERY = 1 "),
        ("EPOCHS = 3 ", "EPOCHS = 1 "),
        ('"callbacks=[]"', '"callbacks=[]", "model.channels=[4,8]", "trainer.limit_train_batches=2"'),
    ):
        assert long in source
        source = source.replace(long, short)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    scope: dict = {"__name__": "notebook"}
    exec(compile(ast.parse(source), "first_steps.ipynb", "exec"), scope)
    top = [angles[-1] for _, angles, _ in scope["runs"]["dtp"][1]]
    assert max(top) < 0.1, "the target of the top stage is a step along the gradient"
    assert tuple(scope["features"].shape) == (1000, 8 * 7 * 7)


def test_the_picture_is_what_its_script_draws() -> None:
    path = ROOT / "docs" / "scripts" / "dtp_figure.py"
    spec = importlib.util.spec_from_file_location("dtp_figure", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.IMAGE.read_text(encoding="utf-8") == "\n".join(script.drawing()) + "\n"


def test_the_site_builds_strictly_and_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocs is not installed: make docs installs it")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://0.0.0.0:9", "https_proxy": "http://0.0.0.0:9"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert len(pages) > 50
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+//"
    )
    assert not [name for name, text in pages.items() if fetched.search(text)]
    assert "The bare loop" in pages["index.html"] and "files/results/default.csv" in pages["index.html"]
    assert (site / "files" / "results" / "default.csv").read_bytes() == (ROOT / "results" / "default.csv").read_bytes()
    navigation = pages["index.html"] + pages["learners/index.html"] + pages["losses/index.html"]
    for name in ("learners/dtp.html", "losses/hinge.html"):
        assert Path(name).name in navigation
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("compute_gradients" in entry["text"] for entry in index["docs"])
    assert (site / "search" / "search_index.js").exists(), "search works where pages are opened from disk"


@pytest.mark.parametrize(("words", "size"), [((), "about 6 GB"), (("CPU=1",), "below 2 GB")])
def test_make_says_what_it_installs(words: tuple[str, ...], size: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-n", "train", f"VENV={tmp_path}", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and size in done.stdout and "--quiet" not in done.stdout
