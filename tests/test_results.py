"""How results look in Python: short, and as tables in a notebook in which nothing of a file is markup."""

from __future__ import annotations

from pathlib import Path

import bitconv
from bitconv.system.results import Result

from synthetic import FIXTURES
from test_verify import Rebuilt


def test_a_result_is_shown_in_a_line(tmp_path: Path) -> None:
    result = bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "out.gguf")
    assert isinstance(result, Result)
    shown = repr(result)
    assert len(shown) < 1500 and shown.startswith(f"Conversion(output={result.output!r}, family='Llama 1.58-bit'")
    assert "tensors=<21>" in shown
    assert result.output == tmp_path / "out.gguf"


def test_a_notebook_gets_tables_without_markup_of_the_file_s(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "out.gguf")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.metadata["general.name"] = "<script>alert(1)</script>"
    rebuilt.metadata["x.<b>"] = "<i>"
    page = bitconv.inspect(rebuilt.write(tmp_path / "other.gguf"))._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "<i>" not in page
    assert "<summary>tensors</summary>" in page and "<td>blk.0.attn_q.weight</td><td>i2_s</td><td>512, 512</td>" in page
