"""The documentation's examples are run, page by page, in an empty folder.

A page's ```python blocks share one namespace, in order. In a ```bash block that follows the comment `<!-- run -->`,
each line that starts with `undertow ` goes through the command line and must succeed. Pictures are drawn in few steps,
and trainings draw no sample: what an example shows is that its options are taken, not what comes out.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services import copy_pipeline
from undertow.cli import main
from undertow.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
MODEL = "stable-diffusion"
FEW = 3

STEPS = re.compile(r"""(\bsteps(?:=|": ))([0-9]+)\b""")
"""Of a request in Python."""

BLOCK = re.compile(
    r"^(?P<run><!-- run -->\n+)?```(?P<language>python|bash)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    text: str
    line: int


def runnable_blocks(page: str) -> list[Block]:
    return [
        Block(language=match["language"], text=match["text"], line=page[: match.start("text")].count("\n"))
        for match in BLOCK.finditer(page)
        if match["language"] == "python" or match["run"]
    ]


def run_page(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in runnable_blocks(path.read_text()):
        if block.language == "python":
            # Blank lines before the block make a traceback point into the page.
            text = STEPS.sub(lambda found: found[1] + few(found[2]), block.text)
            exec(compile("\n" * block.line + text, path, "exec"), namespace)
        else:
            for command in re.findall(r"^undertow (.*)$", block.text, flags=re.MULTILINE):
                assert main(in_few_steps(shlex.split(command))) == 0, command


def few(steps: str) -> str:
    return str(min(FEW, int(steps)))


def in_few_steps(command: list[str]) -> list[str]:
    """The command, with few steps where it draws."""
    if command[0] == "train" and command[1] in ("lora", "controlnet", "image-prompt", "distill"):
        return [*command, "--no-sample"]
    if command[0] not in ("generate", "compare", "maps"):
        return command
    if "--steps" in command:
        at = command.index("--steps") + 1
        return [*command[:at], few(min(command[at].split(","), key=int)), *command[at + 1 :]]
    return [*command, "--steps", few("20")]


ELSEWHERE = ("docs/guides/service.md",)
"""Pages that need a service, which test_service_guide.py runs."""

PAGES = [
    page
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if runnable_blocks(page.read_text()) and page.relative_to(ROOT).as_posix() not in ELSEWHERE
]


LONG = {"adapters.md", "distillation.md", "export.md", "inside.md", "requests.md", "text-to-image.md"}
"""They take twenty seconds and more; `make test-slow` runs them."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if page.name in LONG else [])
        for page in PAGES
    ],
)
def test_examples_run(page, tmp_path, monkeypatch):
    """Where a page draws with a checkpoint, a tiny random one lies in its folder. What a page measures of the machine
    decides nothing elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    if f"model {MODEL}" in page.read_text():
        copy_pipeline("sd1", tmp_path / MODEL)
    run_page(page)


def test_the_readme_has_an_example():
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", AssertionError),
        ("<!-- run -->\n```bash\nundertow nothing\n```\n", AssertionError),
    ],
)
def test_a_wrong_example_is_noticed(page, error, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(error):
        run_page(path)


def test_a_block_in_another_language_and_an_unmarked_command_are_left_alone(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("```bash\nundertow nothing\n```\n\n```text\nraise SystemExit\n```\n")
    run_page(path)


def test_the_readme_lists_the_verbs():
    """The README's table of verbs is the catalogue of the command line."""
    listed = re.findall(r"^\| `undertow (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(set(listed)) == sorted(VERBS)
