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
    figure = go.Figure()
    if seeds:
        ks = np.arange(1, min(len(seed) for seed in seeds) + 1)
        shares = np.stack([seed["shared"].to_numpy()[: len(ks)] / ks for seed in seeds])
        low, high = shares.min(axis=0), shares.max(axis=0)
        figure.add_scatter(x=ks, y=low, mode="lines", line={"width": 1.5, "color": charts.GREY}, hoverinfo="skip", showlegend=False)
        figure.add_scatter(
            x=ks, y=high, mode="lines", fill="tonexty", fillcolor=NOISE, line={"width": 1.5, "color": charts.GREY}, name=texts["seeds"],
            hovertemplate="k = %{x}: %{y:.0%}<extra></extra>",
        )  # fmt: skip
    k = curve["k"].to_numpy()
    for name, colour, dash, width in (("chance", charts.RED, "dot", 1.5), ("here", charts.BLUE, "solid", 3)):
        share = curve["shared" if name == "here" else "chance"].to_numpy() / k
        figure.add_scatter(
            x=k, y=share, mode="lines" if len(k) > 1 else "markers", line={"color": colour, "dash": dash, "width": width},
            name=texts[name], hovertemplate="k = %{x}: %{y:.0%}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text=texts["k"], fixedrange=True)
    figure.update_yaxes(title_text=texts["share"], range=[0, 1.02], tickformat=".0%", fixedrange=True)
    return _finished(figure, height=380, legend=True)


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
    figure = go.Figure()
    if len(a) > MANY:
        counts, _, _ = np.histogram2d(*(np.clip(place, 0, 1) for place in places), bins=SQUARES, range=((0, 1), (0, 1)))
        middles = (np.arange(SQUARES) + 0.5) / SQUARES
        shown = np.where(counts.T > 0, np.log10(np.maximum(counts.T, 1)), np.nan)
        powers = np.arange(0, int(np.ceil(np.nanmax(shown))) + 1)
        ticks = {"tickvals": powers.tolist(), "ticktext": [charts.short(float(10.0**power)) for power in powers]}
        figure.add_heatmap(
            x=middles, y=middles, z=shown, colorscale=DENSITY, customdata=counts.T, hovertemplate="%{customdata:,.0f}<extra></extra>",
            colorbar={"title": {"text": count}, "thickness": 12, **ticks}, zmin=0, zmax=max(float(powers[-1]), 1.0),
        )  # fmt: skip
    else:
        figure.add_scatter(
            x=places[0], y=places[1], mode="markers", marker={"size": 6, "color": charts.BLUE, "opacity": 0.55}, text=names,
            customdata=[f"A {charts.short(one)}, B {charts.short(two)}" for one, two in zip(a, b, strict=True)],
            hovertemplate="%{text}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
    if axes[0] == axes[1]:
        figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": charts.GREY, "dash": "dot", "width": 1.5})
    for axis, update, title in ((axes[0], figure.update_xaxes, x), (axes[1], figure.update_yaxes, y)):
        ticks = axis.ticks(7)
        values = {"tickvals": [place for place, _ in ticks], "ticktext": [text for _, text in ticks]}
        update(title_text=title, range=[-0.02, 1.02], fixedrange=True, **values)
    return _finished(figure, height=440)


DENSITY: Final = [[0.0, "#a9c8e0"], [0.5, "#4a86b8"], [1.0, "#123a5e"]]


def overlap_matrix(values: Array, names: Sequence[str], *, name: str) -> go.Figure:
    """How alike every two lists are, from 0 to 1, with the number in each cell."""
    words = [[f"{value:.2f}" for value in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=list(names), y=list(names), text=words, texttemplate="%{text}", textfont={"color": charts.INK, "size": 12},
            colorscale=charts.SEQUENTIAL, zmin=0, zmax=1, xgap=2, ygap=2, colorbar={"title": {"text": name}, "thickness": 12},
            hovertemplate="%{y} – %{x}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(type="category", side="top", showgrid=False, fixedrange=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, fixedrange=True, automargin=True)
    return _finished(figure, height=130 + 44 * len(names))


def bars(counts: pd.Series, *, x: str, y: str) -> go.Figure:
    """A bar for each name, in the order given."""
    figure = go.Figure(
        go.Bar(x=[str(name) for name in counts.index], y=counts.to_numpy(), marker_color=charts.BLUE, text=counts.to_numpy())
    )
    figure.update_traces(textposition="outside", cliponaxis=False, hovertemplate="%{x}: %{y:,}<extra></extra>")
    figure.update_xaxes(type="category", title_text=x, fixedrange=True)
    figure.update_yaxes(title_text=y, fixedrange=True)
    return _finished(figure, height=260)


def _finished(figure: go.Figure, *, height: int, legend: bool = False) -> go.Figure:
    figure.update_layout(
        height=height, margin={"l": 0, "r": 0, "t": 30, "b": 0}, showlegend=legend, font={"family": charts.FONT}, separators=".,",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return figure
