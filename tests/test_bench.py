"""The bench measures, compares and reports; how fast anything is, no test asks."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bench import files
from bench.files import Point, Source
from bench.kernels import Rate
from bench.limits import Shares
from bench.measure import BenchError, Comparison, Run, cold, compare, machine_limit, read, run, write
from bench.report import chart, markdown, targets
from bench.suite import Results, Suite, in_another_process, measure

TINY = Suite(
    repeats=1,
    main=Source("1x256x512", "bf16"),
    types=("tq2_0",),
    others=((Source("1x256x512", "packed"), "i2_s"),),
    memory=(Source("2x256x512", "f32"),),
    sizes=(Source("3x256x512", "bf16"),),
    computed=Source("large", "bf16", 1),
    read_bytes=1 << 20,
    disk=10**6,
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def runs(*seconds: float, rss: int = 10**8) -> tuple[Run, ...]:
    return tuple(Run(value, rss, "") for value in seconds)


def test_a_run_has_its_time_its_memory_and_its_output() -> None:
    # The test's own process may have grown, and would count.
    little = in_another_process(run, python("print('hello')"))
    much = in_another_process(run, python("import time; block = b'x' * 300_000_000; time.sleep(0.2)"))
    assert little.output == "hello\n"
    assert little.rss < 200_000_000 < 300_000_000 < much.rss
    assert much.seconds > 0.2


def test_a_command_that_fails_is_an_error_with_its_last_line() -> None:
    with pytest.raises(BenchError, match="exit code 3: at last"):
        run(python("print('first'); print('at last'); raise SystemExit(3)"))


def test_what_is_compared_runs_in_turns_and_its_outputs_are_removed(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append = "import pathlib; p = pathlib.Path({!r}); p.write_text((p.read_text() if p.exists() else '') + {!r})"
    mine, other = (python("; ".join(append.format(str(path), word) for path in (log, out))) for word in "AB")
    result = compare("A", partial(run, mine), "B", partial(run, other), repeats=3, outputs=[out])
    assert log.read_text() == "ABABAB"
    assert not out.exists()
    assert len(result.runs) == len(result.others) == len(result.ratios) == 3


def test_ratios_are_those_of_pairs() -> None:
    result = Comparison("", "", runs(1.0, 4.0, 9.0), runs(2.0, 4.0, 3.0))
    assert result.ratios == [0.5, 1.0, 3.0]
    assert (result.seconds, result.other_seconds) == (4.0, 3.0)


def test_the_machine_s_limit_is_of_reading_once_and_of_writing_as_much_as_the_output(tmp_path: Path) -> None:
    source, output, written = tmp_path / "source", tmp_path / "output", tmp_path / "written"
    source.mkdir()
    for name in "ab":
        (source / name).write_bytes(bytes(3 << 20))
    output.write_bytes(bytes((2 << 20) + 5))
    limit = machine_limit(source, output, written, 2)
    assert written.stat().st_size == output.stat().st_size
    assert limit.seconds == pytest.approx(0.25 + 1.3 * max(limit.reading, limit.writing))
    assert min(limit.reading, limit.writing) > 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_a_cold_file_is_measured_after_it_was_dropped(tmp_path: Path) -> None:
    write(tmp_path / "file", 1 << 21)
    seen: list[int] = []
    measured = partial(read, tmp_path / "file", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda _descriptor, *advice: seen.extend(advice))
        assert cold(tmp_path, measured)().seconds > 0
    assert seen == [0, 0, os.POSIX_FADV_DONTNEED]


@pytest.mark.runners
@pytest.mark.slow
def test_the_suite_measures_everything_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "thread_counts", lambda: [1, 2])
    results = measure(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [point.threads for point in results.threads] == [1, 2]
    assert [point.nbytes for point in results.sizes] == sorted(point.nbytes for point in results.sizes)
    assert {(rate.layout, rate.operation) for rate in results.rates} == {
        (layout, operation)
        for layout in ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "q2_0", "iq2_bn", "iq1_bn")
        for operation in ("pack", "unpack", "matmul")
    }
    assert [computed.type_name for computed in results.computing] == ["i2_s", "tl2", "tq2_0", "iq2_bn"]
    for computed in results.computing:
        assert all(speed.prompt > 0 < speed.alone for speed in (*computed.speeds, *computed.others))
        assert bool(computed.others) == (computed.beside != "bitnet.cpp" or "BITCONV_BITNET_CPP" in os.environ)
    assert results.shares is not None and all(share > 0 for share in (*results.shares.prompt, *results.shares.alone))

    page = markdown(results, {"CPU": "one"}, "bench.png")
    found = {target.what: target.limit for target in targets(results)}
    assert found == {
        'bitconv --help / python -c "import typer, rich"': 1.3,
        "convert 1x256x512, bf16, to i2_s / the machine's limit": 1,
        "convert 1x256x512, bf16, to tq2_0 / the machine's limit": 1,
        "verify 1x256x512, bf16, as i2_s / sha256sum of the file": 1.5,
        "verify --against 1x256x512, bf16, as i2_s / convert": 1.5,
        "convert 1x256x512, bf16, to i2_s, cold / reading it cold": 1.3,
        "convert 1x256x512, packed, to i2_s / the machine's limit": 1,
        "convert 1x256x512, packed, to i2_s / cp and sync of the checkpoint": 1.5,
        "i2_s matmul / reading, one core": 0.6,
        "reading a prompt / multiply-adds of a plain loop": 0.5,
        "a token alone / reading its weights": 0.9,
        "memory of convert 1x256x512, bf16, to i2_s": 350,
        "memory of convert 2x256x512, f32, to i2_s / that": 1.1,
    }
    assert all(f"| {what} | " in page for what in found)
    tables = [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]
    assert [len(table) - 2 for table in tables] == [1, len(found), len(results.comparisons), 25, 4, 4]
    assert all(line.count("|") == table[0].count("|") for table in tables for line in table)
    pytest.importorskip("matplotlib")
    chart(results, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def made_up() -> Results:
    mine = (*runs(2.0, 1.0, rss=300_000_000), *runs(9.0, rss=351_000_000))
    converted = Comparison("convert", "cp", mine, runs(2.0, 2.0, 2.0), limit=1.0)
    point = Point(10**9, 1, converted)
    return Results(
        main="large",
        comparisons=(converted,),
        converted=converted,
        memory={"large": runs(1.0, rss=380_000_000)},
        sizes=(point, replace(point, nbytes=2 * 10**9)),
        threads=(point,),
        rates=(Rate("i2_s", "matmul", "reading", 10**9, (2.0,), (1.0,)),),
        shares=Shares((0.6, 0.4, 0.7), (0.5,), (40.0,)),
        computing=(),
    )


def test_targets_are_met_by_medians_and_memory_by_the_most() -> None:
    page = markdown(made_up(), {}, None)
    assert "| convert / cp | 1.00 (0.50 to 4.50) | \u2264 1 | yes |" in page
    assert "| memory of convert | 351 (300 to 351) MB | \u2264 350 MB | no |" in page
    assert "| memory of convert large, to i2_s / that | 1.08 (1.08 to 1.08) | \u2264 1.1 | yes |" in page
    assert "| i2_s matmul / reading, one core | 0.50 (0.50 to 0.50) | \u2265 0.6 | no |" in page
    assert "| reading a prompt / multiply-adds of a plain loop | 0.60 (0.40 to 0.70) | \u2265 0.5 | yes |" in page
    assert (
        "40 (40 to 40) tokens a second of large. The test split of wikitext-2, about 290,000 tokens, takes 121" in page
    )
    assert "| a token alone / reading its weights | 0.50 (0.50 to 0.50) | \u2265 0.9 | no |" in page
    assert "![" not in page


def test_a_disk_with_too_little_room_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="BITCONV_BENCH_DIR"):
        measure(replace(TINY, disk=10**18), tmp_path)
