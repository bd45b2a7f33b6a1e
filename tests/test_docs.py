"""What the documentation says is what the program does, and the site built of it loads nothing from elsewhere."""

from __future__ import annotations

import argparse
import functools
import html
import http.server
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import edgeline
from edgeline.model_module import hooks, module_source
from edgeline.pipelines.cli.main import parser
from edgeline.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
CHROMIUM = Path("/usr/bin/chromium")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(above: argparse.ArgumentParser, name: str = "edgeline") -> dict[str, argparse.ArgumentParser]:
    """Every command by all its words, those with commands below them too."""
    found = {name: above}
    for action in above._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found |= commands(below, f"{name} {word}")
    return found


COMMANDS = commands(parser())


# What the pages say


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_on_a_page_exist_with_their_options(page: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for line in re.findall(r"(?<![\w./-])edgeline [a-z][^\n`|#]*", text):
        words = line.split()
        depth = 1
        while depth < len(words) and " ".join(words[: depth + 1]) in COMMANDS:
            depth += 1
        command = " ".join(words[:depth])
        if depth == 1:  # the word edgeline in a sentence
            continue
        known = COMMANDS[command]._option_string_actions
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line):
            assert option in known, f"{command} has no option {option}: {line}"


def test_what_a_module_may_have_is_listed() -> None:
    page = (ROOT / "docs/how-to/model-and-data.md").read_text()
    listed = re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)
    assert set(listed) == {*module_source.REQUIRED_HOOKS, *module_source.OPTIONAL_HOOKS}
    required = re.findall(r"^\| `(\w+)\(.*?\)` \| required", page, re.MULTILINE)
    assert set(required) == {*module_source.REQUIRED_HOOKS}


@pytest.mark.parametrize("name", ["README.md", "docs/how-to/model-and-data.md"])
def test_the_model_module_of_a_page_trains(name: str, tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "my_model.py"
    path.write_text(blocks(ROOT / name, "python")[0])
    module = hooks.load(str(path))
    photo = tf.io.encode_jpeg(tf.zeros([50, 70, 3], tf.uint8)).numpy()
    features = {"image": tf.constant([photo] * 4), "label": tf.constant([0, 1, 2, 4], tf.int64)}
    assert set(module.feature_spec()) == set(features)
    inputs, labels = module.preprocess(features)
    model = module.build_model()
    module.compile_model(model)
    loss, accuracy = model.train_on_batch(inputs, labels)
    assert loss > 0
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize(
    "code", [block for page in PAGES for block in blocks(page, "python") if "-> Recipe" in block], ids=lambda code: ""
)
def test_the_recipes_on_the_pages_can_be_made(code: str, tmp_path: Path) -> None:
    path = tmp_path / "recipes.py"
    path.write_text(code)
    functions = {
        name: value for name, value in runpy.run_path(str(path)).items() if name in re.findall(r"def (\w+)", code)
    }
    assert functions
    for name, function in functions.items():
        recipe = function()
        assert isinstance(recipe, Recipe)
        assert recipe.name == name


@pytest.mark.slow
def test_the_tutorial_works(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    for name, code in re.findall(r'^```python title="(.*?)"\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = "\n".join(["set -euo pipefail", *blocks(page, "sh")])
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"selected\s+\w*int8", run.stdout)
    assert "\ntriangle\n" in run.stdout  # what app.py says of the picture of one


# The site


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built strictly."""
    build = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs.py"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return ROOT / "build" / "site"


def is_foreign(address: str) -> bool:
    return re.match(r"\s*(?:[a-z]+:)?//", address, re.IGNORECASE) is not None


@pytest.mark.slow
def test_no_page_names_anything_of_others_to_load(site: Path) -> None:
    from lxml import html as parsing

    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        tree = parsing.fromstring(page.read_bytes())
        loaded = [*tree.xpath("//*[not(self::a)]/@src | //link/@href | //*/@srcset | //object/@data | //video/@poster")]
        loaded += tree.xpath("//*[local-name() = 'use' or local-name() = 'image']/@*[contains(name(), 'href')]")
        assert loaded
        assert not [address for address in loaded if is_foreign(address)], page
        assert not foreign_in_css("\n".join(tree.xpath("//style/text() | //@style"))), page


def foreign_in_css(text: str) -> list[str]:
    named = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", text)
    return [address for pair in named for address in pair if is_foreign(address)]


@pytest.mark.slow
def test_no_style_sheet_names_anything_of_others_to_load(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not foreign_in_css(sheet.read_text()), sheet


#: What the theme's script can load from elsewhere, and what there would have to be on a page for it to do so.
ON_DEMAND = {
    "https://unpkg.com/mermaid@": r'class="[^"]*mermaid',
    "https://unpkg.com/glightbox@": r'class="[^"]*glightbox',
    "https://unpkg.com/pyodide@": "data-md-exec",
    "https://cdn.jsdelivr.net/pyodide/": "data-md-exec",
    "https://unpkg.com/ace-builds@": "data-md-exec",
    "https://unpkg.com/resize-observer-polyfill": "for browsers of before 2020",
    "https://api.github.com/": 'data-md-component="source"',
    "https://${e}/api/v4/projects/": 'data-md-component="source"',
}


@pytest.mark.slow
def test_no_script_loads_anything_of_others(site: Path) -> None:
    pages = "".join(page.read_text() for page in site.rglob("*.html"))
    scripts = sorted(site.rglob("*.js"))
    assert scripts
    for script in scripts:
        for address in re.findall(r"""https?://(?!www\.w3\.org)[^"'` )]+""", script.read_text()):
            [marker] = [marker for start, marker in ON_DEMAND.items() if address.startswith(start)]
            assert not re.search(marker, pages), (address, marker)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there: apt-get install chromium")
def test_a_browser_loads_nothing_from_elsewhere_and_finds_things(site: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    screenshots = Path(os.environ.get("EDGELINE_SCREENSHOTS") or tmp_path)
    screenshots.mkdir(parents=True, exist_ok=True)
    troubles: list[str] = []
    with served(site) as root, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("console", lambda message: troubles.append(f"console: {message.type} {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on(
            "request", lambda request: request.url.startswith((root, "data:", "blob:")) or troubles.append(request.url)
        )
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            page.goto(root + name)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= 1400, name
            if name in ("index.html", "architecture.html", "reference/command-line.html", "reference/python.html"):
                page.screenshot(path=screenshots / f"docs-{name.replace('/', '-')}.png")
        page.goto(root + "index.html")
        page.keyboard.press("Control+k")
        page.keyboard.type("rollback")
        page.get_by_text("Unattended retraining").last.wait_for(timeout=20_000)
        browser.close()
    assert not troubles


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class served:  # noqa: N801
    """Serves a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.slow
def test_the_reference_has_every_command_with_its_options(site: Path) -> None:
    page = (site / "reference" / "command-line.html").read_text()
    headings = re.findall(r"<h2 id=.*?>(edgeline.*?)<a", page)
    leaves = {name for name in COMMANDS if not any(other.startswith(f"{name} ") for other in COMMANDS)}
    assert set(headings) == leaves
    sections = dict(zip(headings, re.split(r"<h2 id=", page)[-len(headings) :], strict=True))
    for name in leaves:
        text = html.unescape(re.sub("<.*?>", "", sections[name]))
        missing = [o for o in COMMANDS[name]._option_string_actions if not re.search(rf"(?<![\w-]){o}(?![\w-])", text)]
        assert missing in ([], ["--help"]), name
    option = "<dt><code>--batch-size N</code> <small>default: 32</small></dt><dd>of all trainings</dd>"
    assert option in sections["edgeline run"]


@pytest.mark.slow
def test_the_reference_has_every_export(site: Path) -> None:
    ids = {match for page in site.rglob("*.html") for match in re.findall(r'id="(edgeline\.\w+)"', page.read_text())}
    assert {f"edgeline.{name}" for name in edgeline.__all__} <= ids


@pytest.mark.slow
def test_the_architecture_page_has_every_component_and_room(site: Path) -> None:
    page = (site / "architecture.html").read_text()
    table = page[page.index('<h2 id="artifacts"') : page.index('<h2 id="the-cache"')]
    components = [name for name, module in edgeline._EXPORTS.items() if module.endswith(".component")]
    for name in components:
        assert f"<td>{name}</td>" in table
    row = table[table.index("<td>Quantizer</td>") :].partition("</tr>")[0]
    assert re.findall(r"<code>(\w+)</code>: (\w+)", row) == [
        ("examples", "Examples"),
        ("model", "Model"),
        ("calibration", "RepresentativeDataset"),
        ("compressed", "Model"),
        ("model_run", "ModelRun"),
    ]
    picture = page[page.index('<svg class="pipeline"') :].partition("</svg>")[0]
    assert [*re.findall(">(Pusher|Evaluator|Trainer|DataGate)<", picture)] == [
        "DataGate",
        "Trainer",
        "Evaluator",
        "Pusher",
    ]
    rooms = re.findall(r'<div title=".+?">([\w.]+)</div>', page)
    assert {"errors", "tflite", "trainer", "pipelines.cli", "kubeflow.cli"} <= set(rooms)
    assert rooms.index("kubeflow.cli") < rooms.index("pipelines.cli") < rooms.index("trainer") < rooms.index("errors")
