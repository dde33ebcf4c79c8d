"""Figures of the compare page: overlap of tops, one score against another, how alike lists are."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from tracin_core import charts
from tracin_core.charts import Array, Axis

MANY: Final = 5_000  # more points than this are counted in squares
SQUARES: Final = 60  # along each side
NOISE: Final = "rgba(138, 143, 152, 0.30)"


def overlap_figure(curve: pd.DataFrame, seeds: Sequence[pd.DataFrame], texts: dict[str, str]) -> go.Figure:
    """The share of the top k that both name, against k; chance as a dotted line; what seeds alone share as a band.

    Args:
        texts: k, share (the axes), here, chance, seeds (the curves).
    """
    traces: list[charts.Trace] = []
    if seeds:
        ks = np.arange(1, min(len(seed) for seed in seeds) + 1)
        shares = np.stack([seed["shared"].to_numpy()[: len(ks)] / ks for seed in seeds])
        edge = {"type": "scatter", "x": ks, "mode": "lines", "line": {"width": 1.5, "color": charts.GREY}}
        told = {"name": texts["seeds"], "hovertemplate": "k = %{x}: %{y:.0%}<extra></extra>"}
        traces.append({**edge, "y": shares.min(axis=0), "hoverinfo": "skip", "showlegend": False})
        traces.append({**edge, "y": shares.max(axis=0), "fill": "tonexty", "fillcolor": NOISE, **told})
    k = curve["k"].to_numpy()
    for name, colour, dash, width in (("chance", charts.RED, "dot", 1.5), ("here", charts.BLUE, "solid", 3)):
        share = curve["shared" if name == "here" else "chance"].to_numpy() / k
        traces.append(
            {
                "type": "scatter", "x": k, "y": share, "mode": "lines" if len(k) > 1 else "markers", "name": texts[name],
                "line": {"color": colour, "dash": dash, "width": width}, "hovertemplate": "k = %{x}: %{y:.0%}<extra></extra>",
            }
        )  # fmt: skip
    shares_axis = charts.titled(texts["share"], range=[0, 1.02], tickformat=".0%")
    return charts.figure(traces, x=charts.titled(texts["k"]), y=shares_axis, height=380, showlegend=True, legend=charts.ABOVE)


def axes(a: Array, b: Array, *, own: bool) -> tuple[Axis, Axis]:
    """An asinh axis for both scores, or one each where their units differ.

    Raises:
        ViewError: no score differs from 0.
    """
    if own:
        return charts.histogram(a).axis, charts.histogram(b).axis
    shared = charts.histogram(np.concatenate([a, b])).axis
    return shared, shared


def scatter_figure(
    a: Array, b: Array, names: npt.NDArray[Any], axes: tuple[Axis, Axis], *, x: str, y: str, count: str
) -> go.Figure:
    """One score against the other: points up to `MANY`, above that the number of examples in each square, told by colour."""
    places = [axis.place(values) for axis, values in zip(axes, (a, b), strict=True)]
    if len(a) > MANY:
        cloud = squares(places, count)
    else:
        cloud = {
            "type": "scatter", "x": places[0], "y": places[1], "mode": "markers", "text": names.tolist(),
            "marker": {"size": 6, "color": charts.BLUE, "opacity": 0.55},
            "customdata": [f"A {charts.short(one)}, B {charts.short(two)}" for one, two in zip(a, b, strict=True)],
            "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        }  # fmt: skip
    dots = {"color": charts.GREY, "dash": "dot", "width": 1.5}
    diagonal = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": dots}
    across, up = (charts.scored(axis, title, 7, range=[-0.02, 1.02]) for axis, title in zip(axes, (x, y), strict=True))
    return charts.figure([cloud], x=across, y=up, height=440, shapes=[diagonal] if axes[0] == axes[1] else [])


def squares(places: Sequence[Array], name: str) -> charts.Trace:
    """How many points lie in each square of the plane, by powers of ten."""
    counts, _, _ = np.histogram2d(*(np.clip(place, 0, 1) for place in places), bins=SQUARES, range=((0, 1), (0, 1)))
    middles = (np.arange(SQUARES) + 0.5) / SQUARES
    shown = np.where(counts.T > 0, np.log10(np.maximum(counts.T, 1)), np.nan)
    powers = np.arange(0, int(np.ceil(np.nanmax(shown))) + 1)
    ticks = {"tickvals": powers.tolist(), "ticktext": [charts.short(float(10.0**power)) for power in powers]}
    return {
        "type": "heatmap", "x": middles, "y": middles, "z": shown, "colorscale": DENSITY, "customdata": counts.T,
        "hovertemplate": "%{customdata:,.0f}<extra></extra>", "colorbar": {"title": {"text": name}, "thickness": 12, **ticks},
        "zmin": 0, "zmax": max(float(powers[-1]), 1.0),
    }  # fmt: skip


DENSITY: Final = [[0.0, "#a9c8e0"], [0.5, "#4a86b8"], [1.0, "#123a5e"]]


def overlap_matrix(values: Array, names: Sequence[str], *, name: str) -> go.Figure:
    """How alike every two lists are, from 0 to 1, with the number in each cell."""
    cells = {
        "type": "heatmap", "z": values, "x": list(names), "y": list(names), "text": [[f"{value:.2f}" for value in row] for row in values],
        "texttemplate": "%{text}", "textfont": {"color": charts.INK, "size": 12}, "colorscale": charts.SEQUENTIAL, "zmin": 0, "zmax": 1,
        "xgap": 2, "ygap": 2, "colorbar": {"title": {"text": name}, "thickness": 12},
        "hovertemplate": "%{y} – %{x}: %{text}<extra></extra>",
    }  # fmt: skip
    across = {"type": "category", "showgrid": False}
    up = {**across, "autorange": "reversed", "automargin": True}
    return charts.figure([cells], x={**across, "side": "top"}, y=up, height=130 + 44 * len(names))


def bars(counts: pd.Series, *, x: str, y: str) -> go.Figure:
    """A bar for each name, in the order given."""
    told = {
        "type": "bar", "x": [str(name) for name in counts.index], "y": counts.to_numpy(), "marker": {"color": charts.BLUE},
        "text": [str(count) for count in counts], "textposition": "outside", "cliponaxis": False,
        "hovertemplate": "%{x}: %{y:,}<extra></extra>",
    }  # fmt: skip
    return charts.figure([told], x=charts.titled(x, type="category"), y=charts.titled(y), height=260)
