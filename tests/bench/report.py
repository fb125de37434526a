"""The results as a Markdown page and a chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

from bench.files import Point
from bench.kernels import READ_SHARE
from bench.limits import ALONE_SHARE, PROMPT_SHARE
from bench.measure import MACHINE_SHARE, START_SECONDS
from bench.runners import Speed
from bench.suite import Results

QUICK_NOTE = (
    " This is a quick run: the limits are those of models so large that what a command costs before it starts does not"
    " count, and these are small."
)
WIKITEXT_TOKENS = 290_000  # of Llama 3's tokenizer, which 2b-4t has too
RSS_LIMIT = 350 * 10**6
RSS_GROWTH_LIMIT = 1.1
AT_MOST, AT_LEAST = "\u2264", "\u2265"


class Target(NamedTuple):
    """value: what counts of the values of all runs. sign: the limit is the most, or the least."""

    what: str
    value: float
    values: Sequence[float]
    sign: str
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.sign == AT_MOST else self.value >= self.limit


def targets(results: Results) -> list[Target]:
    """Everything that has a limit: times by the median of the ratios, memory by the most."""
    rows = [
        Target(f"{c.what} / {c.beside}", median(c.ratios), c.ratios, AT_MOST, c.limit)
        for c in results.comparisons
        if c.limit is not None
    ]
    rows += [
        Target(f"{r.layout} {r.operation} / {r.beside}, one core", median(r.ratios), r.ratios, AT_LEAST, READ_SHARE)
        for r in results.rates
        if r.beside == "reading"
    ]
    if results.shares is not None:
        prompt, alone = results.shares.prompt, results.shares.alone
        rows += [
            Target(
                "reading a prompt / multiply-adds of a plain loop",
                median(prompt),
                prompt,
                AT_LEAST,
                PROMPT_SHARE,
            ),
            Target("a token alone / reading its weights", median(alone), alone, AT_LEAST, ALONE_SHARE),
        ]
    used = [run.rss / 1e6 for run in results.converted.runs]
    rows.append(Target(f"memory of {results.converted.what}", max(used), used, AT_MOST, RSS_LIMIT / 1e6, " MB"))
    for what, runs in results.memory.items():
        ratios = [run.rss / results.converted.rss for run in runs]
        rows.append(Target(f"memory of convert {what}, to i2_s / that", max(ratios), ratios, AT_MOST, RSS_GROWTH_LIMIT))
    return rows


def markdown(results: Results, machine: Mapping[str, str], chart_name: str | None) -> str:
    """The page. chart_name: of the picture beside it; a quick run has none."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`. Times are of whole commands with their start-up, on files in the page cache unless "
        "they are called cold; what is compared runs in turns. Figures are medians, with the least and the most in "
        "brackets. Memory is the maximum resident set.",
        f"The machine's limit of a conversion is {START_SECONDS:g} s and {MACHINE_SHARE:g} times the greater of "
        "reading the checkpoint once, by as many threads, and writing as much as the output to the disk."
        + ("" if chart_name else QUICK_NOTE),
        _table(("", ""), machine.items()),
        "## Targets",
        _table(("", "measured", "limit", "met"), map(_target_row, targets(results))),
        "## Times",
        _table(
            ("", "seconds", "MB", "beside", "seconds"),
            (
                (
                    c.what,
                    _spread(r.seconds for r in c.runs),
                    f"{c.rss / 1e6:.0f}",
                    c.beside,
                    _spread(r.seconds for r in c.others),
                )
                for c in results.comparisons
            ),
        ),
        "## Kernels",
        "One core; GB read and written a second, of one int8 vector for matmul.",
        _table(
            ("", "", "GB/s", "beside", "GB/s", "ratio"),
            (
                (
                    r.layout,
                    r.operation,
                    f"{r.speed / 1e9:.2f}",
                    r.beside,
                    f"{r.other_speed / 1e9:.2f}",
                    _spread(r.ratios),
                )
                for r in results.rates
            ),
        ),
        "## Growth",
        *(
            [f"![Seconds of convert and its limit by the size of the checkpoint, and by threads]({chart_name})"]
            if chart_name
            else []
        ),
        _table(
            ("checkpoint", "threads", "convert, seconds", "seconds a GB", "the limit", "reading", "writing"),
            map(_point_row, [*results.sizes, *results.threads]),
        ),
        _line(results.sizes),
        "## Computing",
        "Tokens a second of bitnet_b1_58-large (0.7B): of a prompt of 256 tokens, with the logits of its last, "
        "and of tokens alone behind it. In turns with a runner, whose figures follow.",
        _table(
            ("type", "threads", "prompt", "alone", "beside", "prompt", "alone"),
            (
                (
                    c.type_name,
                    c.threads,
                    *_speeds(c.speeds),
                    c.beside,
                    *(_speeds(c.others) if c.others else ("not measured",) * 2),
                )
                for c in results.computing
            ),
        ),
        *([] if results.shares is None else [_eval_line(results)]),
    ]
    return "\n\n".join(parts) + "\n"


def chart(results: Results, path: Path) -> None:
    """A PNG of the growth with bytes and with threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_size, by_threads) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    gigabytes = [point.nbytes / 1e9 for point in results.sizes]
    threads = [point.threads for point in results.threads]
    for axes, x, points in ((by_size, gigabytes, results.sizes), (by_threads, threads, results.threads)):
        for label, style, runs in (
            ("convert to i2_s", "o-", [point.comparison.runs for point in points]),
            ("the machine's limit", "s--", [point.comparison.others for point in points]),
        ):
            seconds = [sorted(run.seconds for run in group) for group in runs]
            middle = [median(group) for group in seconds]
            error = [[m - g[0] for m, g in zip(middle, seconds, strict=True)]]
            error.append([g[-1] - m for m, g in zip(middle, seconds, strict=True)])
            axes.errorbar(x, middle, yerr=error, fmt=style, capsize=3, label=label)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("seconds")
        axes.legend()
    by_size.set_xlim(0, 1.05 * max(gigabytes))
    by_size.set_xlabel("GB of checkpoint")
    by_threads.set_xlabel("threads")
    by_threads.set_xticks(threads)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _target_row(target: Target) -> tuple[object, ...]:
    low, high = min(target.values), max(target.values)
    digits = 0 if target.unit else 2
    measured = f"{target.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}){target.unit}"
    return target.what, measured, f"{target.sign} {target.limit:g}{target.unit}", "yes" if target.met else "no"


def _point_row(point: Point) -> tuple[object, ...]:
    gigabytes, comparison = point.nbytes / 1e9, point.comparison
    return (
        f"{gigabytes:.2f} GB",
        point.threads,
        _spread(run.seconds for run in comparison.runs),
        f"{comparison.seconds / gigabytes:.2f}",
        _spread(run.seconds for run in comparison.others),
        _spread(run.reading for run in comparison.others),
        _spread(run.writing for run in comparison.others),
    )


def _line(points: Sequence[Point]) -> str:
    """How near the times of growing sizes are to a straight line."""
    x = [point.nbytes / 1e9 for point in points]
    y = [point.comparison.seconds for point in points]
    slope, start = linear_regression(x, y)
    off = max(abs(seconds - start - slope * gigabytes) / seconds for gigabytes, seconds in zip(x, y, strict=True))
    return f"The line nearest to the sizes: {start:.2f} s and {slope:.2f} s a GB; they are off by {off:.0%} at most."


def _spread(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"{median(found):.3g} ({found[0]:.3g} to {found[-1]:.3g})"


def _eval_line(results: Results) -> str:
    assert results.shares is not None
    scored = results.shares.scored
    return (
        f"`eval`, which computes the logits of every token: {_spread(scored)} tokens a second of {results.main}. "
        f"The test split of wikitext-2, about {WIKITEXT_TOKENS:,} tokens, takes "
        f"{WIKITEXT_TOKENS / median(scored) / 60:.0f} minutes."
    )


def _speeds(speeds: Sequence[Speed]) -> tuple[str, str]:
    return _spread(speed.prompt for speed in speeds), _spread(speed.alone for speed in speeds)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
