"""Data to figure, for pages and reports. Bins travel to the browser, never scores; colours are mid-tones that work on light and dark.

A heavy tail on both sides of zero is drawn on an asinh axis: linear near zero, logarithmic far from it. Scores of exactly 0 (a hinge
loss makes many) stand apart from the bins, or they would hide everything else.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from tracin_core.errors import ViewError

Array = npt.NDArray[np.float64]
Scale = Literal["asinh", "log", "linear"]
SCALES: Final[tuple[Scale, ...]] = get_args(Scale)
SIGNED_SCALES: Final[tuple[Scale, ...]] = ("asinh", "linear")

BLUE, RED, GREY, AMBER = "#5b8db8", "#d1495b", "#8a8f98", "#d98c1f"
GROUPS: Final = ("#5b8db8", "#d98c1f", "#4f9d69", "#a06cb5", "#d1495b", "#8a8f98", "#3a9ea5", "#b07d62")
SYMBOLS: Final = ("circle", "diamond", "square", "cross")  # where there are more groups than colours
MANY_POINTS: Final = 2_000  # drawn one by one, without WebGL, which not every browser has
NAMED: Final = 10  # checkpoints on an axis
ABOVE: Final = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0}
READABLE = 12  # columns of a grid that leave room for words in its cells
INK: Final = "#14202b"  # on every colour of the two scales below, at least 4.5 : 1
SEQUENTIAL: Final = [[0.0, "#eef5fb"], [1.0, "#6aa3cf"]]
DIVERGING: Final = [
    [0.0, "#e58a7b"],
    [0.5, "#f2f2f2"],
    [1.0, "#7fb0d8"],
]  # harmful, none, helpful; told apart without colour vision
# The same on a dark page, where the least must not shine most; its words are at least 4.5 : 1 on every colour.
DARK: Final = {
    "ink": "#f4f7fa",
    "sequential": [[0.0, "#1c2733"], [1.0, "#38719e"]],
    "diverging": [[0.0, "#a04438"], [0.5, "#2b2b2b"], [1.0, "#38719e"]],
}
FONT: Final = "'Source Sans', 'Noto Sans TC', 'Noto Sans CJK TC', 'PingFang TC', 'Microsoft JhengHei', sans-serif"
QUANTILES: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LIMIT: Final = 200_000  # numbers in one figure; a browser becomes slow beyond


# ---- bins -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Where a score stands on the screen, from 0 (left) to 1 (right)."""

    scale: Scale
    low: float
    high: float
    unit: float  # of asinh: where it turns from linear to logarithmic

    def place(self, scores: npt.ArrayLike) -> Array:
        """Places of these scores; beyond 0 and 1 outside the axis."""
        low, high = (float(self._stretched(np.array([end]))[0]) for end in (self.low, self.high))
        return np.asarray((self._stretched(np.asarray(scores, dtype=float)) - low) / (high - low))

    def score(self, places: npt.ArrayLike) -> Array:
        """The scores at these places: the inverse of `place`."""
        low, high = (float(self._stretched(np.array([end]))[0]) for end in (self.low, self.high))
        stretched = low + np.asarray(places, dtype=float) * (high - low)
        if self.scale == "asinh":
            return np.asarray(np.sinh(stretched) * self.unit)
        return np.asarray(10**stretched if self.scale == "log" else stretched)

    def _stretched(self, scores: Array) -> Array:
        if self.scale == "asinh":
            return np.asarray(np.arcsinh(scores / self.unit))
        with np.errstate(divide="ignore"):  # 0 stands infinitely far left on a logarithmic axis
            return np.asarray(np.log10(scores) if self.scale == "log" else scores)

    def ticks(self, most: int = 9) -> list[tuple[float, str]]:
        """Places of round scores, with their text: powers of ten, and where there is room their halves and fifths."""
        rounds = (
            [self._rounds()]
            if self.scale == "linear"
            else [self._powers(), [score * part for part in (0.5, 0.2) for score in self._powers()]]
        )
        kept: dict[float, str] = {}
        for scores in rounds:
            inside = {score for score in scores if self.low <= score <= self.high}
            for score in sorted(
                inside, key=lambda score: (score != 0, -abs(score), score)
            ):  # from the ends: near 0 asinh is crowded
                place = float(self.place([score])[0])
                if all(abs(place - other) >= 0.7 / most for other in kept):
                    kept[place] = short(score)
        return sorted(kept.items())

    def _powers(self) -> list[float]:
        first = int(np.floor(np.log10(self.unit if self.scale == "asinh" else self.low)))
        last = int(np.ceil(np.log10(max(abs(self.low), abs(self.high)))))
        powers = [float(10.0**power) for power in range(first, last + 1)]
        return powers if self.scale == "log" else [*(-power for power in powers), 0.0, *powers]

    def _rounds(self) -> list[float]:
        step = 10.0 ** np.floor(np.log10((self.high - self.low) / 4))
        step *= min((1, 2, 5), key=lambda factor: abs((self.high - self.low) / (step * factor) - 6))
        return [float(step * i) for i in range(int(np.floor(self.low / step)), int(np.ceil(self.high / step)) + 1)]


@dataclass(frozen=True)
class Histogram:
    """Counts between places on an axis, the exact zeros, and the scores that are no finite number (both not among the counts)."""

    axis: Axis
    places: Array  # [bins + 1], from 0 to 1
    counts: npt.NDArray[np.int64]  # [bins]
    zeros: int
    not_finite: int

    @property
    def edges(self) -> Array:
        """The bins' edges as scores: [bins + 1]."""
        return self.axis.score(self.places)

    @property
    def total(self) -> int:
        return int(self.counts.sum()) + self.zeros + self.not_finite

    def place(self, score: float) -> float:
        return float(self.axis.place([score])[0])

    def to_dict(self) -> dict[str, Any]:
        """What a drawing needs, in plain values."""
        bars = zip(self.places[:-1].round(5).tolist(), self.places[1:].round(5).tolist(), self.counts.tolist(), strict=True)
        return {
            "bars": [list(bar) for bar in bars],
            "highest": max(int(self.counts.max(initial=0)), 1),
            "zeros": self.zeros,
            "all": self.total,
            "ticks": [[place, text] for place, text in self.axis.ticks()],
        }


def histogram(scores: npt.ArrayLike, scale: Scale = "asinh", bins: int = 80, *, axis: Axis | None = None) -> Histogram:
    """The scores in bins of equal width on the screen.

    Args:
        axis: of another histogram that this one is laid over; scores beyond it count in its outermost bins. None: one of their own.

    Raises:
        ViewError: no score differs from 0, or a logarithm of negative scores is asked for.
    """
    values = np.asarray(scores, dtype=float).ravel()
    finite = values[np.isfinite(values)]
    nonzero = finite[finite != 0]
    if nonzero.size == 0:
        raise ViewError(
            f"Each of the {values.size:,} scores is exactly 0, so there is nothing to draw; choose another loss or checkpoint."
        )
    if scale == "log" and nonzero.min() < 0:
        raise ViewError("Scores below 0 have no logarithm; choose the asinh or the linear scale.")
    axis = axis or _axis(nonzero, scale)
    counts, places = np.histogram(np.clip(axis.place(nonzero), 0, 1), bins=bins, range=(0, 1))
    return Histogram(axis, places, counts.astype(np.int64), int((finite == 0).sum()), int(values.size - finite.size))


def common_axis(*scores: npt.ArrayLike, scale: Scale = "asinh") -> Axis:
    """One axis for several histograms, from the lowest to the highest of their scores.

    Raises:
        ViewError: no score differs from 0, or a logarithm of negative scores is asked for.
    """
    return histogram(np.concatenate([np.asarray(values, dtype=float).ravel() for values in scores]), scale).axis


def _axis(nonzero: Array, scale: Scale) -> Axis:
    low, high = float(nonzero.min()), float(nonzero.max())
    if scale != "log":
        low, high = min(low, 0.0), max(high, 0.0)
    unit = float(np.quantile(np.abs(nonzero), 0.25))
    if low == high:  # one positive value on a log axis
        low, high = low / 2, high * 2
    return Axis(scale, low, high, unit)


def threshold_steps(axis: Axis, value: float, steps: int = 400) -> Array:
    """Thresholds for a slider, ascending and at most 0: evenly spaced on the screen, with three digits, and the value itself."""
    places = np.linspace(0, float(axis.place([min(0.0, axis.high)])[0]), steps)
    rounded = [float(f"{score:.3g}") for score in axis.score(places)]
    return np.unique(np.minimum([*rounded, min(value, 0.0)], 0.0) + 0.0)


def quantiles(scores: npt.ArrayLike) -> dict[float, float]:
    """Share -> the score that so many lie at or below, over the finite scores, exact zeros among them."""
    values = np.asarray(scores, dtype=float)
    return dict(zip(QUANTILES, np.quantile(values[np.isfinite(values)], QUANTILES).tolist(), strict=True))


def short(value: float) -> str:
    """A number with three digits and k, M or G where it is long."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


# ---- figures --------------------------------------------------------------------------------------------------------------------

Trace = dict[str, Any]


def figure(traces: Sequence[Trace], *, x: Trace, y: Trace, height: int, **layout: Any) -> go.Figure:
    """The traces on axes that stay where they are, in the look of every chart here.

    Plotly's own way to build a figure looks at every value and name in it: 90 ms for one histogram, and a page has up to six charts. Here
    it takes them as they are, in 2 ms; tests/test_charts.py lets it look at each kind of figure.

    Args:
        traces, x, y, layout: in plotly's own words, nested, without its shorthands (`{"line": {"color": ...}}`, not `line_color`).
        height: in pixels.

    Raises:
        ViewError: more numbers than a browser can draw.
    """
    size = sum(np.size(trace.get(axis, ())) for trace in traces for axis in "xyz")
    if size > LIMIT:
        raise ViewError(f"The chart would hold {size:,} numbers, and browsers become slow above {LIMIT:,}; choose fewer examples.")
    drawn = {
        "xaxis": {"fixedrange": True, **x},
        "yaxis": {"fixedrange": True, **y},
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 30, "b": 0},
        "showlegend": False,
        "font": {"family": FONT},
        "separators": ".,",
        **layout,
    }
    return go.Figure({"data": list(traces), "layout": drawn}, _validate=False)


def darkened(drawn: go.Figure) -> go.Figure:
    """The same figure for a dark page: cells in dark colours with light words. The figure that is given is changed."""
    for trace in drawn.data:
        scale = [list(stop) for stop in trace.colorscale or ()] if trace.type == "heatmap" else []
        if scale in (SEQUENTIAL, DIVERGING):
            trace.colorscale = DARK["sequential" if scale == SEQUENTIAL else "diverging"]
            trace.textfont = {"color": DARK["ink"], "size": 12}
    return drawn


def titled(title: str, **axis: Any) -> Trace:
    """An axis with this title."""
    return {"title": {"text": title}, **axis}


def scored(axis: Axis, title: str, most: int = 9, **told: Any) -> Trace:
    """An axis of scores, with its title and the places of round scores."""
    ticks = axis.ticks(most)
    return titled(title, tickvals=[place for place, _ in ticks], ticktext=[text for _, text in ticks], **told)


def histogram_figure(
    bins: Histogram,
    *,
    x: str,
    y: str,
    zeros: str,
    marks: dict[str, float] | None = None,
    over: tuple[str, Histogram] | None = None,
    name: str = "",
) -> go.Figure:
    """Bars on the histogram's own scale, the bar of exact zeros apart, and named scores as vertical lines.

    Args:
        x, y, zeros: names of the axes and of the bar of zeros.
        marks: name -> score.
        over: the name of another histogram on the same axis, and that; it is drawn as a line.
        name: of this one, where another is laid over it.
    """
    middle = (bins.places[:-1] + bins.places[1:]) / 2
    ranges = [f"{short(low)} … {short(high)}" for low, high in zip(bins.edges[:-1], bins.edges[1:], strict=True)]
    told = {"customdata": ranges, "hovertemplate": "%{customdata}: %{y:,}<extra></extra>"}
    apart = {"xaxis": "x2", "yaxis": "y2", "showlegend": False, "hovertemplate": "%{x}: %{y:,}<extra></extra>"}
    bars = {
        "type": "bar",
        "x": middle,
        "y": bins.counts,
        "width": np.diff(bins.places),
        "marker": {"color": BLUE},
        "name": name,
        **told,
    }
    of_zeros = {
        "type": "bar", "x": [zeros], "y": [bins.zeros], "marker": {"color": GREY, "pattern": {"shape": "/"}},
        "text": [f"{bins.zeros:,}"], "textposition": "outside", "cliponaxis": False, **apart,
    }  # fmt: skip
    traces: list[Trace] = [bars, of_zeros]
    if over is not None:
        line = {"shape": "hvh", "color": AMBER, "width": 2}
        dash = {"color": AMBER, "size": 10, "symbol": "line-ew-open"}
        traces += [
            {"type": "scatter", "x": middle, "y": over[1].counts, "mode": "lines", "line": line, "name": over[0], **told},
            {"type": "scatter", "x": [zeros], "y": [over[1].zeros], "mode": "markers", "marker": dash, **apart},
        ]
    inside = {mark: bins.place(score) for mark, score in (marks or {}).items()}
    lines = [upright(place, mark) for mark, place in inside.items() if 0 <= place <= 1]  # on a log axis a 0 has no place
    return figure(
        traces, x=scored(bins.axis, x, range=[0, 1], domain=[0, 0.864], anchor="y"), y=titled(y, anchor="x"), height=340, bargap=0.0,
        xaxis2={"type": "category", "fixedrange": True, "domain": [0.904, 1], "anchor": "y2"},
        yaxis2={"fixedrange": True, "matches": "y", "showticklabels": False, "anchor": "x2"},
        shapes=[shape for shape, _ in lines], annotations=[words for _, words in lines],
        showlegend=over is not None, legend=ABOVE,
    )  # fmt: skip


def upright(place: float, name: str) -> tuple[Trace, Trace]:
    """A dashed line from bottom to top of the first axes, and its name above it."""
    line = {"color": RED, "dash": "dash", "width": 2}
    shape = {"type": "line", "x0": place, "x1": place, "xref": "x", "y0": 0, "y1": 1, "yref": "y domain", "line": line}
    words = {
        "text": name, "font": {"color": RED}, "showarrow": False,
        "x": place, "xref": "x", "xanchor": "center", "y": 1, "yref": "y domain", "yanchor": "bottom",
    }  # fmt: skip
    return shape, words


def cumulative_figure(curves: dict[str, Histogram], *, x: str, y: str) -> go.Figure:
    """The share of all finite scores at or below each bin's upper edge (the empirical distribution function there), a line per name.

    Args:
        curves: name -> histogram; all on the axis of the first.
    """
    traces = []
    for (name, bins), colour in zip(curves.items(), (BLUE, AMBER), strict=False):
        edges = bins.edges[1:]
        below = np.cumsum(bins.counts) + np.where(edges >= 0, bins.zeros, 0)
        traces.append(
            {
                "type": "scatter", "x": bins.places[1:], "y": below / max(bins.total - bins.not_finite, 1), "mode": "lines", "name": name,
                "line": {"shape": "hv", "color": colour, "width": 2}, "customdata": [short(edge) for edge in edges],
                "hovertemplate": "≤ %{customdata}: %{y:.1%}<extra></extra>",
            }
        )  # fmt: skip
    first = next(iter(curves.values()))
    shares = titled(y, range=[0, 1.02], tickformat=".0%")
    return figure(traces, x=scored(first.axis, x, range=[0, 1]), y=shares, height=340, showlegend=len(curves) > 1, legend=ABOVE)


def boxes_figure(spread: pd.DataFrame, names: Sequence[str], axis: Axis, *, x: str, y: str) -> go.Figure:
    """A box per group on a score's own axis: 5, 25, 50, 75 and 95 %, with how many examples it is of.

    Args:
        spread: as `spread.group_spread` makes it.
        names: of the groups, in its order.
    """
    held = spread[spread["n"] > 0]
    labels = [f"{name}<br>n = {n:,}" for name, n in zip(np.asarray(names, dtype=object)[spread["n"] > 0], held["n"], strict=True)]
    at = {name: axis.place(held[name]) for name in ("q05", "q25", "q50", "q75", "q95")}
    told = [
        f"{short(low)} … {short(middle)} … {short(high)}"
        for low, middle, high in zip(held["q05"], held["q50"], held["q95"], strict=True)
    ]
    boxes = {
        "type": "box", "x": labels, "lowerfence": at["q05"], "q1": at["q25"], "median": at["q50"], "q3": at["q75"],
        "upperfence": at["q95"], "marker": {"color": BLUE}, "hoverinfo": "skip",
    }  # fmt: skip
    middles = {
        "type": "scatter", "x": labels, "y": at["q50"], "mode": "markers", "marker": {"opacity": 0, "size": 18}, "customdata": told,
        "hovertemplate": "%{x}: %{customdata}<extra></extra>",
    }  # fmt: skip
    return figure([boxes, middles], x=titled(x, type="category"), y=scored(axis, y, range=[-0.02, 1.02]), height=380)


def points_figure(
    points: pd.DataFrame, *, x: str, y: str, name: str = "", select: bool = False, axes: tuple[Axis, Axis] | None = None
) -> go.Figure:
    """Points on a plane, one trace per group; beyond 2,000 of them a grid of counts instead.

    Args:
        points: columns x, y, label (what the pointer shows); perhaps value (number: a colour scale) or group (text: a colour each).
        name: of the colour scale.
        select: the points may be chosen with a lasso; each tells its row as `customdata`.
        axes: of the scores whose places x and y are; None: they are plain numbers.
    """
    many = len(points) > MANY_POINTS
    traces = _squares(points) if many else _coloured(points, name) if "value" in points else _grouped(points)
    plain = {"zeroline": True}
    across, up = (
        [scored(axis, title, range=[-0.03, 1.03], **plain) for axis, title in zip(axes, (x, y), strict=True)]
        if axes
        else [titled(title, **plain) for title in (x, y)]
    )
    legend = not many and "value" not in points
    return figure(traces, x=across, y=up, height=460, dragmode="lasso" if select else False, showlegend=legend, legend=ABOVE)


def _squares(points: pd.DataFrame) -> list[Trace]:
    """How many points lie in each square."""
    counts, xs, ys = np.histogram2d(points["x"], points["y"], bins=80)
    return [
        {
            "type": "heatmap", "x": xs, "y": ys, "z": np.where(counts.T > 0, counts.T, np.nan), "colorscale": SEQUENTIAL,
            "colorbar": {"title": {"text": "n"}, "thickness": 12}, "hovertemplate": "n = %{z:,}<extra></extra>",
        }
    ]  # fmt: skip


def _coloured(points: pd.DataFrame, name: str) -> list[Trace]:
    """Points on a colour scale."""
    ends = {key.replace("z", "c", 1) if key.startswith("zm") else key: told for key, told in _colours(points["value"]).items()}
    marker = {
        "color": points["value"].to_numpy(), "colorbar": {"title": {"text": name}, "thickness": 12}, "size": 8, **ends,
        "line": {"width": 0.5, "color": GREY},
    }  # fmt: skip
    return [_points(points, list(range(len(points))), marker)]


def _grouped(points: pd.DataFrame) -> list[Trace]:
    """Points of a colour and a symbol per group."""
    return [
        {
            **_points(
                part, part.index.tolist(), {"size": 8, "color": GROUPS[at % len(GROUPS)], "symbol": _symbol(at // len(GROUPS))}
            ),
            "name": str(group),
        }
        for at, (group, part) in enumerate(points.groupby("group", observed=True, sort=False))
    ]


def _points(points: pd.DataFrame, rows: list[Any], marker: Trace) -> Trace:
    return {
        "type": "scatter", "x": points["x"].to_numpy(), "y": points["y"].to_numpy(), "mode": "markers", "text": points["label"].tolist(),
        "customdata": rows, "hovertemplate": "%{text}<extra></extra>", "marker": marker,
    }  # fmt: skip


def _symbol(place: int) -> str:
    return SYMBOLS[place % len(SYMBOLS)]


def grid_figure(
    grid: pd.DataFrame,
    values: str,
    *,
    x: str,
    y: str,
    name: str,
    chosen: tuple[Any, Any] | None = None,
    height: int = 440,
    small: bool = False,
) -> go.Figure:
    """One cell per pair of angles, with its value and its number of pairs; the chosen cell is framed. Groups of samples stand in one row.

    A click in a heatmap tells nobody; an invisible square over each cell does, with the row of `grid` as `customdata` (see `clicked`).

    Args:
        grid: columns low, high, n and the one named by `values`.
        height: in pixels, at least; many rows need more.
        small: little room: neither counts in the cells nor a legend of the colours beside them.
    """
    of_groups = grid["low"].equals(grid["high"])
    ends = {"row": [""] * len(grid) if of_groups else grid["low"].tolist(), "high": grid["high"].tolist()}
    numbers = grid[values].tolist()
    rows, columns = ({end: place for place, end in enumerate(in_order(ends[side]))} for side in ("row", "high"))
    shown, texts = np.full((len(rows), len(columns)), np.nan), np.full((len(rows), len(columns)), "", dtype=object)
    told = ["" if np.isnan(value) else short(value) for value in numbers]  # a cell may have no value
    words = [f"{value}<br>n = {n:,}" for n, value in zip(grid["n"].tolist(), told, strict=True)]
    for row, high, value, number, text in zip(ends["row"], ends["high"], numbers, told, words, strict=True):
        shown[rows[row], columns[high]] = value
        texts[rows[row], columns[high]] = "" if len(columns) > READABLE else number if of_groups or small else text
    cells = {
        "type": "heatmap", "z": shown, "x": [literal(marked(end)) for end in columns], "y": [literal(marked(end)) for end in rows],
        "text": texts.tolist(), "texttemplate": "%{text}", "textfont": {"color": INK, "size": 12}, "hoverinfo": "skip", "xgap": 2,
        "ygap": 2, "colorbar": {"title": {"text": name}, "thickness": 12}, "showscale": not small, **_colours(grid[values]),
    }  # fmt: skip
    squares = {
        "type": "scatter", "x": [literal(marked(end)) for end in ends["high"]], "y": [literal(marked(end)) for end in ends["row"]],
        "mode": "markers", "marker": {"symbol": "square", "size": 44, "opacity": 0}, "customdata": list(range(len(grid))), "text": words,
        "hovertemplate": "%{y} – %{x}: %{text}<extra></extra>", "showlegend": False,
    }  # fmt: skip
    frames = []
    if chosen is not None and (of_groups or chosen[0] in rows) and chosen[1] in columns:
        row, column = 0 if of_groups else rows[chosen[0]], columns[chosen[1]]
        line = {"color": "#e9a23b", "width": 4}
        frames = [{"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "line": line}]
    return figure(
        [cells, squares], x=titled(x, type="category", side="top", showgrid=False),
        y=titled("" if of_groups else y, type="category", autorange="reversed", showgrid=False),
        height=200 if of_groups else max(height, 160 + 26 * len(rows)), shapes=frames,
    )  # fmt: skip


def in_order(ends: Sequence[Any]) -> list[Any]:
    """The rows or columns of a grid: angles ascending, names as they come."""
    return list(dict.fromkeys(ends)) if any(isinstance(end, str) for end in ends) else sorted(set(ends))


def marked(end: Any) -> str:
    """An angle in degrees, or a name."""
    return end if isinstance(end, str) else f"{end:g}°"


def literal(name: str) -> str:
    """A name from the data as a chart's label: plotly reads tags and links in labels."""
    return html.escape(name, quote=False)


def clicked(selection: Any) -> int | None:
    """The row of the grid that was clicked, from what `widgets.chart` gives back."""
    points = selection["selection"]["points"] if selection else []
    return int(points[0]["customdata"]) if points and "customdata" in points[0] else None


def ranked_figure(ranked: pd.DataFrame, values: str, names: str, *, x: str, reach: float | None = None) -> go.Figure:
    """One horizontal bar from 0 per example, strongest on top; the sign is told by side, symbol and colour.

    Args:
        reach: how far the axis goes from 0, where two figures have one scale; None: as far as the longest bar.
    """
    numbers = ranked[values].to_numpy(dtype=float)
    most = float(np.abs(numbers).max()) if reach is None else reach
    ends = [
        -most * (1.02 if numbers.min() < 0 else 0.04),
        most * (1.02 if numbers.max() > 0 else 0.04),
    ]  # a little beyond 0, to name it
    signs = ["▲" if value >= 0 else "▼" for value in numbers]
    labels = [
        f"{sign} {rank}. {literal(name)}" for rank, (sign, name) in enumerate(zip(signs, ranked[names], strict=True), start=1)
    ]
    bars = {
        "type": "bar", "x": numbers, "y": labels, "orientation": "h", "hovertemplate": "%{y}: %{x:,.4g}<extra></extra>",
        "marker": {"color": _by_sign(numbers)},
    }  # fmt: skip
    across = titled(x, **({"range": ends} if most > 0 else {}))
    return figure([bars], x=across, y={"autorange": "reversed", "automargin": True}, height=120 + 26 * len(ranked))


def _by_sign(values: Array) -> list[str]:
    return [BLUE if value >= 0 else RED for value in values]


def contributions_figure(terms: npt.ArrayLike, names: Sequence[str], *, x: str, y: str) -> go.Figure:
    """What each checkpoint adds to one influence: a bar each, in their order."""
    values = np.asarray(terms, dtype=float)
    bars = {
        "type": "bar", "x": [literal(name) for name in names], "y": values, "marker": {"color": _by_sign(values)},
        "hovertemplate": "%{x}: %{y:,.4g}<extra></extra>",
    }  # fmt: skip
    return figure([bars], x=by_checkpoint(x, names), y=titled(y), height=220)


def lines_figure(lines: dict[str, npt.ArrayLike], names: Sequence[str], *, x: str, y: str, percent: bool = False) -> go.Figure:
    """Each line's value at each checkpoint, epochs to scale; told apart by dash and symbol as well as by colour."""
    epochs = [told.removeprefix("epoch ") for told in names]
    steps = [int(told) if told.isdecimal() else literal(told) for told in epochs]
    axis = titled(x) if all(isinstance(step, int) for step in steps) else by_checkpoint(x, epochs)
    traces = [
        {
            "type": "scatter", "x": steps, "y": np.asarray(values, dtype=float), "name": literal(name), "mode": "lines+markers",
            "line": {"color": GROUPS[place % len(GROUPS)], "dash": ("solid", "dash", "dot")[place % 3]},
            "marker": {"symbol": _symbol(place), "size": 8}, "hovertemplate": "%{x}: %{y:.1%}" if percent else "%{x}: %{y:,.4g}",
        }
        for place, (name, values) in enumerate(lines.items())
    ]  # fmt: skip
    # a line that stays where it is would have its axis reach one below and above it
    shares: Trace = {"tickformat": ".0%", "autorangeoptions": {"minallowed": -0.05, "maxallowed": 1.05}} if percent else {}
    return figure(traces, x=axis, y=titled(y, **shares), height=240, showlegend=len(lines) > 1, legend=ABOVE)


def recovery_figure(curves: pd.DataFrame, *, x: str, y: str, chance: str) -> go.Figure:
    """What share of the planted errors is found by the share that is looked at: a line per column, and the diagonal of chance."""
    looked = [0.0, *curves.index]
    traces = [
        {
            "type": "scatter", "x": looked, "y": [0.0, *curves[name]], "name": literal(str(name)), "mode": "lines",
            "line": {"color": GROUPS[place % len(GROUPS)], "dash": ("solid", "dash", "dot", "dashdot")[place % 4], "width": 2},
            "hovertemplate": "%{x:.0%}: %{y:.0%}",
        }
        for place, name in enumerate(curves)
    ]  # fmt: skip
    diagonal = {
        "type": "scatter", "x": [0.0, 1.0], "y": [0.0, 1.0], "name": chance, "mode": "lines",
        "line": {"color": GROUPS[5], "dash": "longdash", "width": 1}, "hoverinfo": "skip",
    }  # fmt: skip
    shares = {"range": [0, 1.02], "tickformat": ".0%"}
    return figure([*traces, diagonal], x=titled(x, **shares), y=titled(y, **shares), height=340, showlegend=True, legend=ABOVE)


def by_checkpoint(name: str, names: Sequence[str]) -> Trace:
    """An axis of checkpoints, of which as many are named as there is room for upright; of `epoch 12` the number."""
    shown = list(names)[:: -(-len(names) // NAMED) or 1]
    numbers = [literal(told.removeprefix("epoch ")) for told in shown]
    return titled(name, type="category", tickvals=[literal(told) for told in shown], ticktext=numbers, tickangle=0)


def arms_figure(arms: pd.DataFrame, *, x: str, percent: bool = False) -> go.Figure:
    """Every training of every arm as a point, and the mean of each arm as a line across.

    Args:
        arms: columns arm (text) and score, in the order of the arms from the top.
    """
    names = list(dict.fromkeys(arms["arm"]))
    place = {name: number for number, name in enumerate(names)}
    points = {
        "type": "scatter", "x": arms["score"].to_numpy(), "y": [place[name] for name in arms["arm"]], "mode": "markers",
        "text": arms["arm"].tolist(), "marker": {"color": BLUE, "size": 10, "opacity": 0.7},
        "hovertemplate": "%{text}: %{x:.4g}<extra></extra>",
    }  # fmt: skip
    means = []
    for name, part in arms.groupby("arm", sort=False):
        mean, row = float(part["score"].mean()), place[str(name)]
        means.append(
            {"type": "line", "x0": mean, "x1": mean, "y0": row - 0.3, "y1": row + 0.3, "line": {"color": AMBER, "width": 3}}
        )
    rows = {"tickvals": list(place.values()), "ticktext": names, "autorange": "reversed", "automargin": True}
    return figure([points], x=titled(x, tickformat=".0%" if percent else ""), y=rows, height=90 + 44 * len(names), shapes=means)


def intervals_figure(rows: pd.DataFrame, *, x: str, chance: float, guessing: str) -> go.Figure:
    """A dot for each mean with its interval, best from the top; a line where chance is.

    Args:
        rows: columns name (text), mean, low, high, chosen (drawn in another colour).
        chance: what guessing reaches, and `guessing` names the line there.
    """
    traces = []
    for chosen, colour in ((False, BLUE), (True, AMBER)):
        part = rows[rows["chosen"] == chosen]
        mean, low, high = (part[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
        traces.append(
            {
                "type": "scatter", "x": mean, "y": part.index.tolist(), "mode": "markers", "text": part["name"].tolist(),
                "error_x": {"array": high - mean, "arrayminus": mean - low, "thickness": 1.5, "width": 5},
                "customdata": np.stack([low, high], axis=1).tolist(), "marker": {"color": colour, "size": 11},
                "hovertemplate": "%{text}: %{x:.3f} (%{customdata[0]:.3f} – %{customdata[1]:.3f})<extra></extra>",
            }
        )  # fmt: skip
    line = {
        "type": "line",
        "x0": chance,
        "x1": chance,
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        "line": {"color": GREY, "dash": "dot"},
        "label": {"text": literal(guessing), "textposition": "end", "textangle": 0, "yanchor": "bottom", "font": {"color": GREY}},
    }
    names = {"tickvals": rows.index.tolist(), "ticktext": [literal(name) for name in rows["name"]]}
    return figure(
        traces, x=titled(x, range=[0, 1.02]), y={**names, "autorange": "reversed", "automargin": True}, height=90 + 26 * len(rows),
        shapes=[line],
    )  # fmt: skip


def _colours(values: pd.Series) -> Trace:
    if values.min() >= 0:
        return {"colorscale": SEQUENTIAL, "zmin": 0}
    reach = float(values.abs().max())
    return {"colorscale": DIVERGING, "zmin": -reach, "zmax": reach}
