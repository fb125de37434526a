"""report: one page that loads nothing, says what verify says, and in which nothing of a file is markup."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import bitconv
import pytest
from bitconv.cli import app
from bitconv.commands.inspect import InspectedTensor
from bitconv.commands.reporting import plots
from bitconv.gguf import TensorEntry, encode_header
from typer.testing import CliRunner

from synthetic import Synthetic, make_checkpoint
from test_verify import Rebuilt

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Sorts by the share of zeros, twice, and filters; then says in the document what is seen.
USE = """<script>
const rows = () => [...document.querySelectorAll("#tensors tbody tr")];
const zeros = () => rows().map(row => Number(row.cells[5].dataset.value));
const button = document.querySelectorAll("#tensors th button")[5];
button.click();
const up = zeros();
button.click();
const down = zeros();
const filter = document.getElementById("filter");
filter.value = "FFN_UP";
filter.dispatchEvent(new Event("input"));
const seen = rows().filter(row => !row.hidden).map(row => row.cells[0].textContent).sort();
const sorted = up.every((x, i) => !i || up[i - 1] <= x) && down.every((x, i) => !i || down[i - 1] >= x);
document.body.dataset.told = JSON.stringify([sorted, up.length, seen, document.querySelectorAll("svg").length]);
</script>"""


class Elements(HTMLParser):
    """All tags with their attributes, and the texts of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m", "llama", dtype="f16", hidden=512, ffn=512, heads=8)


@pytest.fixture(scope="module")
def file(model: Synthetic) -> Path:
    path = model.path.parent / "in.gguf"
    bitconv.convert(model.path, path, type="tq2_0")
    return path


def written(file: Path, output: Path, **options: object) -> str:
    bitconv.report(file, output, **options)
    return output.read_text()


def test_a_page_has_the_verdict_and_the_model_s_own_numbers(model: Synthetic, file: Path, tmp_path: Path) -> None:
    page = written(file, tmp_path / "out.html", against=model.path)
    elements = Elements(page)
    texts = [text.strip() for text in elements.texts]
    assert f"right, equal to {model.path}" in texts
    assert f"{sum(t.size for t in model.trits.values()):,}" in texts
    for name, trits in model.trits.items():
        cells = texts[texts.index(name) : texts.index(name) + 8]
        shares = [f"{(trits == value).mean():.1%}".replace("%", " %") for value in (-1, 0, 1)]
        assert cells[1] == "tq2_0" and cells[4:7] == shares
    assert sum(tag == "svg" for tag, _ in elements.tags) == 4


def test_it_loads_nothing_from_anywhere(file: Path, tmp_path: Path) -> None:
    page = written(file, tmp_path / "out.html")
    for tag, attributes in Elements(page).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action") and value:
                assert value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in page and "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_a_wrong_file_is_said_to_be_wrong_and_where(file: Path, tmp_path: Path) -> None:
    rebuilt = Rebuilt(file)
    rebuilt.tensor("blk.0.attn_q.weight")[3] = b"\xff" * len(rebuilt.tensor("blk.0.attn_q.weight")[3])
    bad = rebuilt.write(tmp_path / "bad.gguf")
    result = CliRunner().invoke(app, ["report", str(bad), "-o", str(tmp_path / "out.html")])
    assert result.exit_code == 1 and result.stdout.endswith("bytes; the file is WRONG\n")
    texts = [text.strip() for text in Elements((tmp_path / "out.html").read_text()).texts]
    row = texts[texts.index("blk.0.attn_q.weight") :][:12]
    assert "WRONG" in texts and any("holds" in text for text in row)


def test_of_a_file_of_another_tool_s_the_page_says_why_it_cannot_be_judged(tmp_path: Path) -> None:
    entries = [
        TensorEntry("<script>alert(1)</script>", (4, 256), 2, 0),
        TensorEntry("blk.0.\"'.weight", (4, 256), 200, 1024),
    ]
    metadata = {
        "general.architecture": "gpt<b>",
        "general.name": "</title><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}": "{% x %}",
    }
    (tmp_path / "in.gguf").write_bytes(encode_header(metadata, entries) + bytes(4096))
    page = written(tmp_path / "in.gguf", tmp_path / "out.html")
    elements = Elements(page)
    assert "cannot be judged" in [text.strip() for text in elements.texts]
    assert sum(tag == "script" for tag, _ in elements.tags) == 1
    assert not [tag for tag, attributes in elements.tags if tag in ("b", "img") or "onerror" in attributes]
    assert "{{ 7 * 7 }}" in elements.texts and "{% x %}" in elements.texts


def test_a_name_in_a_plot_is_text() -> None:
    tensor = InspectedTensor("blk.0.</svg><b>$x$-->&.weight", "tq2_0", (4, 256), 264, (0.2, 0.3, 0.5), 1.0)
    for plot in (plots.heat_map([tensor], lambda _: 1.0, "viridis"), plots.scales_by_layer([tensor])):
        elements = Elements(plot)
        assert "</svg><b>$x$-->&" in "".join(elements.texts) and "b" not in [tag for tag, _ in elements.tags]


def test_the_same_file_gives_the_same_page(file: Path, tmp_path: Path) -> None:
    assert written(file, tmp_path / "a.html") == written(file, tmp_path / "b.html", threads=1)


def test_what_is_there_is_not_overwritten_and_the_file_itself_never(file: Path, tmp_path: Path) -> None:
    written(file, tmp_path / "out.html")
    with pytest.raises(bitconv.BitconvError, match="exists; pass force=True"):
        bitconv.report(file, tmp_path / "out.html")
    assert bitconv.report(file, tmp_path / "out.html", force=True).right
    with pytest.raises(bitconv.BitconvError, match="is the input itself"):
        bitconv.report(file, file, force=True)


def test_of_a_checkpoint_there_is_no_report(model: Synthetic, tmp_path: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match="is a directory, expected a file"):
        bitconv.report(model.path, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def in_browser(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts, and what the console says."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    return shown.stdout, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_on_a_phone_no_name_or_value_of_a_file_widens_the_page(tmp_path: Path) -> None:
    entries = [TensorEntry("blk.0." + "x" * 57, (4, 256), 2, 0)]
    metadata = {"general.architecture": "gpt", "general.name": "n" * 300, "k" * 200: "v" * 500}
    (tmp_path / "in.gguf").write_bytes(encode_header(metadata, entries) + bytes(4096))
    page = written(tmp_path / "in.gguf", tmp_path / "out.html")
    width = "<script>top.postMessage(document.documentElement.scrollWidth, '*')</script>"
    (tmp_path / "out.html").write_text(page.replace("</body>", f"{width}</body>"))
    # In a frame: a window of Chromium has a least width of its own.
    (tmp_path / "phone.html").write_text(
        "<script>onmessage = event => document.body.dataset.told = event.data</script>"
        '<iframe src="out.html" width="400" height="800"></iframe>'
    )
    document, said = in_browser(tmp_path / "phone.html", tmp_path / "profile")
    told = re.search(r'data-told="(\d+)"', document)
    assert not said and told and int(told[1]) <= 400


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_in_a_browser_it_sorts_and_filters_without_an_error(file: Path, tmp_path: Path) -> None:
    page = written(file, tmp_path / "out.html")
    (tmp_path / "used.html").write_text(page.replace("</body>", f"{USE}</body>"))
    document, said = in_browser(tmp_path / "used.html", tmp_path / "profile")
    assert not said
    tensors = len(bitconv.inspect(file, headers=True).tensors)
    told = re.search(r'data-told="([^"]*)"', document)
    assert told and told[1].replace("&quot;", '"') == (
        f'[true,{tensors},["blk.0.ffn_up.scale","blk.0.ffn_up.weight","blk.1.ffn_up.scale","blk.1.ffn_up.weight"],4]'
    )


def test_without_its_extra_it_is_one_line(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = CliRunner().invoke(app, ["report", str(file), "-o", str(tmp_path / "out.html")])
    assert (
        result.exit_code == 2
        and "jinja2 is missing, which report needs; pip install 'bitconv[report]'" in result.stderr
    )
    assert not (tmp_path / "out.html").exists()
