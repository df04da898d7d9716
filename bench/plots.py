"""The figures as pictures: ours in one strong colour, what one would otherwise use in greys, the limits lighter.

Whiskers are the least and the most of all rounds. Nothing is drawn where matplotlib is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.clients import VALUE
from bench.first import UNPREPARED
from bench.samples import Found, Series
from bench.servers import DELAY

_OURS = "#d9480f"
_OURS_PALE = "#f4a77f"
_INK = "#343a40"
_COLOURS = {
    "common-io": "#5c6773",
    "boto3": "#8a949e",
    "aiobotocore": "#6f8fa8",
    "obstore": "#c2c9d0",
    "aiohttp": "#c2c9d0",
}
_LIMITS = ("obstore", "aiohttp")
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#adb5bd",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": False,
    "figure.dpi": 160,
    "savefig.facecolor": "white",
}


def draw(found: Found, output: Path) -> list[tuple[str, str]]:
    """Write the pictures of all that was measured; return file and what it shows of each."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawn = []
    measures = {series.measure for series in found.series}
    with mpl.rc_context(_STYLE):
        for name, title, picture in _PICTURES:
            if picture.__name__[1:] not in measures:
                continue
            figure = picture(found, pyplot)
            figure.savefig(output / name, bbox_inches="tight", pad_inches=0.15)
            pyplot.close(figure)
            drawn.append((name, title))
    return drawn


def _latency(found: Found, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(9.2, 3.9), sharey=True, layout="constrained")
    rows = [
        ("common-io", "sync"),
        ("boto3", "sync"),
        ("aiobotocore", "async"),
        ("async_state", "sync"),
        ("async_state", "async"),
        ("aiohttp", "async"),
        ("obstore", "async"),
    ]
    rows = [(name, mode) for name, mode in rows if any(series.client == name for series in found.series)]
    for axis, delay in zip(axes, (0, DELAY), strict=True):
        for offset, operation in (-0.2, "put"), (0.2, "get"):
            bars = [found.get("latency", name, operation=operation, mode=mode, delay=delay) for name, mode in rows]
            _bars(axis, bars, offset, 0.38, faint=operation == "get")
        _title(axis, "no delay" if not delay else f"{delay} ms before each answer")
        _floor(axis, delay)
    axes[0].set_yticks(
        range(len(rows)), [_limit(name) if name != "async_state" else f"{name}, {mode}" for name, mode in rows]
    )
    _strong(axes[0])
    axes[0].invert_yaxis()
    figure.suptitle(f"Milliseconds for one put (dark) and one get (pale) of {len(VALUE)} bytes", x=0.01, ha="left")
    return figure


def _throughput(found: Found, pyplot: Any) -> Any:
    figure, axis = pyplot.subplots(figsize=(9.2, 4.4), layout="constrained")
    lines = _lines(found, "throughput", "at_once", "puts/s")
    _draw_lines(axis, lines)
    levels = sorted({level for line in lines.values() for level, _ in line})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(levels, [str(level) for level in levels])
    axis.minorticks_off()
    _plain(axis.yaxis, [100, 200, 500, 1000, 2000, 5000])
    axis.set_xlabel("puts started at once")
    _title(axis, f"Puts of {len(VALUE)} bytes a second")
    return figure


def _clear(found: Found, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(9.2, 4.2), layout="constrained")
    for axis, case, unit in (axes[0], {"delay": 0}, "s"), (axes[1], {}, "MB"):
        lines = _lines(found, "clear", "keys", unit, **case)
        _draw_lines(axis, lines, yscale="log" if unit == "s" else "linear")
        counts = sorted({keys for line in lines.values() for keys, _ in line})
        axis.set_xscale("log")
        axis.set_xticks(counts, [f"{keys:,}" for keys in counts])
        axis.minorticks_off()
        axis.set_xlabel("keys in the scope")
    slow = _lines(found, "clear", "keys", "s", delay=0).get("common-io")
    most = max(series.case["keys"] for series in found.series if series.measure == "clear" and "delay" in series.case)
    if slow and slow[-1][0] < most:
        keys, series = slow[-1]
        axes[0].plot([keys, most], [series.median, series.median * most / keys], ":", color=_COLOURS["common-io"])
        axes[0].annotate(
            "extrapolated",
            (most, series.median * most / keys),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=_COLOURS["common-io"],
            fontsize=9,
        )
    _title(axes[0], "Seconds to clear a scope, no delay")
    _plain(axes[0].yaxis, [0.01, 0.1, 1, 10, 100, 1000])
    _title(axes[1], "Megabytes that it takes")
    axes[1].set_ylim(bottom=0)
    return figure


def _first(found: Found, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 3, figsize=(9.2, 2.8), sharey=True, layout="constrained")
    figure.suptitle("A process's first operation", x=0.01, ha="left")
    figure.get_layout_engine().set(wspace=0.06)
    names = ["common-io", "aiobotocore", UNPREPARED, "async_state"]
    names = [name for name in names if any((s.measure, s.client) == ("first", name) for s in found.series)]
    for axis, process, unit, title in (
        (axes[0], "fresh", "ms", "fresh interpreter, ms"),
        (axes[1], "forked", "ms", "forked task, ms"),
        (axes[2], "forked", "MB", "forked task, MB of private memory"),
    ):
        _bars(axis, [found.get("first", name, unit=unit, process=process) for name in names], 0, 0.66)
        _title(axis, title)
    axes[0].set_yticks(range(len(names)), names)
    _strong(axes[0])
    axes[0].invert_yaxis()
    return figure


def _lag(found: Found, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(9.2, 2.8), sharey=True, layout="constrained")
    figure.suptitle("Worst gap in the turns of the caller's event loop", x=0.01, ha="left")
    names = ["common-io", "aiobotocore", UNPREPARED, "async_state"]
    names = [name for name in names if any((s.measure, s.client) == ("lag", name) for s in found.series)]
    titles = "first use (common-io: in a thread), ms", f"puts started at once at {DELAY} ms, ms"
    for axis, phase, title in zip(axes, ("first use", "puts at once"), titles, strict=True):
        axis.set_xscale("log")
        _bars(axis, [found.get("lag", name, phase=phase) for name in names], 0, 0.66, start=1.0)
        _title(axis, title)
        _plain(axis.xaxis, [1, 10, 100, 1000, 10000])
    axes[0].set_yticks(range(len(names)), names)
    _strong(axes[0])
    axes[0].invert_yaxis()
    return figure


_PICTURES: list[tuple[str, str, Callable[[Found, Any], Any]]] = [
    ("first-operation.png", "Time and memory of a process's first operation", _first),
    ("latency.png", "Time of one operation", _latency),
    ("throughput.png", "Puts a second against how many are started at once", _throughput),
    ("clear.png", "Time and memory of a clear against the number of keys", _clear),
    ("lag.png", "Worst gaps in the caller's event loop", _lag),
]


def _bars(
    axis: Any, rows: list[Series | None], offset: float, height: float, *, faint: bool = False, start: float = 0.0
) -> None:
    """Draw a horizontal bar with whiskers and its value for each row; none where nothing was measured."""
    most = max((max(series.samples) for series in rows if series), default=1.0)
    for row, series in enumerate(rows):
        if series is None:
            continue
        colour = _colour(series.client)
        axis.barh(row + offset, series.median - start, height, left=start, color=colour, alpha=0.5 if faint else 1.0)
        axis.hlines(row + offset, min(series.samples), max(series.samples), color=_INK, linewidth=0.9)
        ours = series.client == "async_state"
        axis.annotate(
            _number(series.median),
            (max(series.samples), row + offset),
            (4, -0.5),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold" if ours else "normal",
            color=_OURS if ours else _INK,
        )
    axis.tick_params(axis="y", length=0)
    if axis.get_xscale() == "linear":
        axis.set_xlim(0, max(most * 1.18, axis.get_xlim()[1]))
        axis.locator_params(axis="x", nbins=4)
    else:
        axis.set_xlim(start, max(most * 3, axis.get_xlim()[1]))
    axis.spines["left"].set_visible(False)


def _lines(found: Found, measure: str, along: str, unit: str, **case: Any) -> dict[str, list[tuple[int, Series]]]:
    lines: dict[str, list[tuple[int, Series]]] = {}
    for series in found.series:
        rest = {name: value for name, value in series.case.items() if name != along}
        if (series.measure, series.unit, rest) == (measure, unit, case):
            lines.setdefault(series.client, []).append((series.case[along], series))
    return {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}


def _draw_lines(axis: Any, lines: dict[str, list[tuple[int, Series]]], yscale: str = "log") -> None:
    ends: list[tuple[float, str, int]] = []
    for name, line in lines.items():
        x = [at for at, _ in line]
        y = [series.median for _, series in line]
        ours = name.startswith("async_state")
        style = "--" if name in _LIMITS or (name != "async_state" and ours) else "-"
        axis.plot(
            x,
            y,
            style,
            color=_colour(name),
            linewidth=2.6 if ours else 1.6,
            marker="o",
            markersize=4,
            zorder=3 if ours else 2,
        )
        axis.fill_between(
            x,
            [min(s.samples) for _, s in line],
            [max(s.samples) for _, s in line],
            color=_colour(name),
            alpha=0.15,
            linewidth=0,
        )
        ends.append((y[-1], name, x[-1]))
    # What places the names has to know where the ends will be.
    axis.set_xscale("log")
    axis.set_yscale(yscale)
    axis.figure.canvas.draw()
    _label_ends(axis, ends)


def _label_ends(axis: Any, ends: list[tuple[float, str, int]]) -> None:
    """Name each line where it ends, no name upon another."""
    taken: list[tuple[float, float]] = []
    pixel = axis.figure.dpi / 72
    for value, name, at in sorted(ends):
        x, y = axis.transData.transform((at, value)) / pixel
        shift = 0.0
        while any(abs(x - other_x) < 90 and y + shift < other_y + 11 for other_x, other_y in taken):
            shift += 1
        taken.append((x, y + shift))
        axis.annotate(
            _limit(name),
            (at, value),
            (7, shift),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK if name in _LIMITS else _colour(name),
            fontweight="bold" if name == "async_state" else "normal",
            annotation_clip=False,
        )


def _colour(name: str) -> str:
    return _OURS if name == "async_state" else _OURS_PALE if name.startswith("async_state") else _COLOURS[name]


def _limit(name: str) -> str:
    return f"{name} (limit)" if name in _LIMITS else name


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _title(axis: Any, title: str) -> None:
    axis.set_title(title)


def _floor(axis: Any, delay: int) -> None:
    if delay:
        axis.axvline(delay, color=_INK, linewidth=0.8, linestyle=":", zorder=0)


def _strong(axis: Any) -> None:
    for label in axis.get_yticklabels():
        if label.get_text().startswith("async_state") and label.get_text() != UNPREPARED:
            label.set_color(_OURS)
            label.set_fontweight("bold")


def _plain(axis: Any, ticks: list[float]) -> None:
    """Number an axis of logarithms as one would write it, where its range reaches."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:,g}" for tick in shown])
    axis.set_ticks([], minor=True)
