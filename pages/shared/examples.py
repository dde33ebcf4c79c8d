"""Examples on a page: their names, choosing one, galleries, cards and players."""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import streamlit as st

from pages.shared import media, session, spectrograms, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from tracin_core import charts
from tracin_core.data.seals import unsealed_text
from tracin_core.errors import TracInError
from tracin_core.records.runs import Run

LISTED: Final = 500  # names in one picker; a browser gets them all at each step


def example_label(example: pd.Series) -> str:
    """A pair in words: `0° – 36° · takes 03, 07`; or a sample: `7 · digit_0123`."""
    if "id1" in example:
        takes = f"{take(example['id1'])}, {take(example['id2'])}"
        return t("pair.label", angle1=f"{example['angle1']:g}", angle2=f"{example['angle2']:g}", takes=takes)
    return f"{sample_target(example)} · {example['id']}"


def sample_target(sample: pd.Series) -> str:
    """What a sample is said to be: its angle, the name of its label, or its number."""
    if "angle" in sample and pd.notna(sample["angle"]):
        return f"{sample['angle']:g}°"
    if "label" in sample or "label_name" in sample:
        return t("sample.label", label=sample.get("label_name", sample.get("label")))
    return t("sample.target", target=f"{sample['target']:.4g}")


def take(sample_id: str) -> str:
    """The number of the recording within its class, the last part of a sample's id."""
    return sample_id.rpartition("_")[2]


def choose_test(
    tests: pd.DataFrame, *, dead: npt.NDArray[np.bool_], key: str, label: str, among: npt.NDArray[np.bool_] | None = None
) -> str:
    """The id of the test chosen, by what names it, the dead ones last and marked; tied to the address.

    Args:
        among: which tests are offered, at least one of them; None: all.
    """
    order = np.argsort(dead, kind="stable")
    offered = order if among is None else order[among[order]]
    return choose_example(tests.iloc[offered].assign(dead=dead[offered]), key=key, label=label)


def choose_example(offered: pd.DataFrame, *, key: str, label: str) -> str:
    """The id of one of these examples, in their order; tied to the address. Where there are many, words of its name narrow the list.

    Args:
        offered: at least one; the column `dead`, if there is one, says which are marked so.
    """
    found = offered
    if len(offered) > LISTED:
        for word in st.text_input(t("example.search"), key=f"{key}.search", placeholder=t("example.search.how")).split():
            found = found[found["id"].str.contains(word, case=False, regex=False)]
    picker = session.linked(key, str(offered["id"].iloc[0]), valid=lambda asked: bool((offered["id"] == asked).any()))
    current = offered[offered["id"] == st.session_state[key]].head(1)
    listed = found.head(LISTED)
    if st.session_state[key] not in set(listed["id"]):
        listed = pd.concat([current, listed])
    names = {
        str(row["id"]): example_label(row) + (t("pair.dead") if row.get("dead", False) else "") for _, row in listed.iterrows()
    }
    chosen = str(st.selectbox(label, list(names), format_func=names.__getitem__, **picker))
    if found.empty:
        widgets.nothing_matches(t("example.search.none"))
    elif len(found) > LISTED:
        st.markdown(f":small[{t('example.search.more', shown=LISTED, total=len(found))}]")
    return chosen


def score_columns(score: str, *, percentile: bool = True) -> dict[str, Any]:
    """The gallery's columns for pairs ranked by a score; without percentiles where there is little room."""
    value = {"score": st.column_config.NumberColumn(t(f"score.{score}"), format="%.4g")}
    return {**value, **percentile_column()} if percentile else value


def percentile_column() -> dict[str, Any]:
    return {"percentile": st.column_config.NumberColumn(t("percentile"), format="%.1f", help=t("percentile.help"))}


def influence_columns(listed: pd.DataFrame) -> dict[str, Any]:
    """The gallery's columns for proponents or opponents, or for tests; bars of all rows on one scale, from 0."""
    parts = np.array([0.0, *(part for row in listed["contributions"] for part in row)])
    bars = st.column_config.BarChartColumn(
        t("contributions"), help=t("contributions.help"), y_min=float(parts.min()), y_max=float(parts.max())
    )
    return {
        "influence": st.column_config.NumberColumn(t("score.influence"), format="%.4g"),
        **percentile_column(),
        "contributions": bars,
    }


def explore(
    run: Run,
    examples: pd.DataFrame,
    *,
    key: str,
    columns: dict[str, Any],
    rows: int = 20,
    total: int | None = None,
    sounds: bool = True,
) -> str | None:
    """A gallery, and below it the card of the row selected, else of the first; gives back that example's id."""
    example = picked(run, examples, key=key, columns=columns, rows=rows, total=total, sounds=sounds)
    if example is None:
        return None
    example_card(run, example)
    return str(example["id"])


def picked(run: Run, examples: pd.DataFrame, **settings: Any) -> pd.Series | None:
    """A gallery, and the example of the row selected in it, else the first; None where there is none.

    Args:
        settings: as `gallery`.
    """
    selected = gallery(run, examples, **settings)
    if examples.empty:
        return None
    return examples.iloc[0] if selected is None else examples[examples["id"] == selected].iloc[0]


def gallery(
    run: Run,
    examples: pd.DataFrame,
    *,
    key: str,
    columns: dict[str, Any],
    rows: int = 20,
    total: int | None = None,
    sounds: bool = True,
) -> str | None:
    """A table of examples with what there is to see and hear of them; gives back the id of the selected row.

    Args:
        examples: columns id, those that name an example, and those named in `columns`, best first; the first `rows` are shown, and
            said to be.
        columns: column -> `st.column_config` or label, in the order shown.
        total: how many there are, where `examples` holds only the first of them.
        sounds: False where there is little room; the card below has the players.
    """
    shown = examples.head(rows).reset_index(drop=True)
    if shown.empty:
        widgets.nothing_matches(t("gallery.empty"))
        return None
    table, parts = pd.DataFrame({"id": shown["id"]}), {}
    for side in ("1", "2") if "id1" in shown else ("",):
        samples = shown[f"id{side}"]
        told = [side_label(example, side) for _, example in shown.iterrows()]
        tones = tones_of(run, samples)
        previews = [
            (media.picture_address(run, sample, tone=tones.get(sample)), media.sound_address(run, sample)) for sample in samples
        ]
        table[f"what{side}"] = told
        parts[f"what{side}"] = t("pair.side", side=side)
        columns_of = (picture_column(side, roomy=sounds), sound_column(side))
        for name, column, values in zip(("picture", "sound"), columns_of, zip(*previews, strict=True), strict=True):
            if any(values) and (sounds or name != "sound"):
                table[f"{name}{side}"] = values
                parts[f"{name}{side}"] = column
    table = table.join(shown[list(columns)])
    with_pictures = any(name.startswith("picture") for name in parts)
    names = [part for part in parts if part.startswith("what")]  # first, where a narrow screen shows them
    height = 72 if with_pictures else 38
    selection = st.dataframe(
        table,
        key=key,
        hide_index=True,
        row_height=height,
        height=min(36 + height * len(table), 540),
        column_order=[*names, *columns, *(part for part in parts if part not in names)],
        column_config={**parts, **columns},
        on_select="rerun",
        selection_mode="single-row",
    )
    told = t("gallery.shown", shown=len(shown), total=len(examples) if total is None else total) + (
        f" {t('gallery.play')}" if any(name.startswith("sound") for name in parts) else ""
    )
    st.markdown(f":small[{told}]")
    picked = selection["selection"]["rows"]
    return str(table["id"].iloc[picked[0]]) if picked and picked[0] < len(table) else None


def tones_of(run: Run, sample_ids: Collection[str]) -> dict[str, float]:
    """The tone of each of these recordings that names one; none where all frequencies are asked for."""
    if st.session_state.get("band") == "full" or "frequency" not in run.samples:
        return {}
    named = run.samples[run.samples["id"].isin(list(sample_ids))]
    told = {str(sample["id"]): spectrograms.tone_of(sample) for _, sample in named.iterrows()}
    return {name: tone for name, tone in told.items() if tone is not None}


def side_label(example: pd.Series, side: str) -> str:
    """One side of a pair, or the sample itself, in a few words."""
    if side:
        return f"{example[f'angle{side}']:g}° · {take(example[f'id{side}'])}"
    return example_label(example)


def picture_column(side: str = "", *, roomy: bool = True) -> Any:
    return st.column_config.ImageColumn(f"{t('spectrogram')} {side}", width=110 if roomy else 104)


def sound_column(side: str = "") -> Any:
    return st.column_config.AudioColumn(f"{t('sound')} {side}", width="small")


def example_card(run: Run, example: pd.Series) -> None:
    """Both samples of a pair side by side, or the sample: what it is, its name, and what there is to see and hear of it.

    Two recordings are drawn on one scale, with their difference; other pictures and texts stand as they are.
    """
    if "id1" not in example:
        with st.container(border=True):
            st.markdown(f"**{plain(sample_target(example))}** · {plain(str(example['id']))}")
            sample_player(run, str(example["id"]))
        return
    drawn = draw_pair(run, example)
    with st.container(horizontal=True, gap="xsmall"):  # below each other where there is no room
        for place, side in enumerate("12"):
            sample = str(example[f"id{side}"])
            with st.container(border=True, width=spectrograms.CARD):
                st.markdown(f"**{example[f'angle{side}']:g}°** · {plain(sample)}")
                if drawn is None:
                    sample_player(run, sample)
                else:
                    st.image(
                        drawn.sides[place],
                        width="stretch",
                        output_format="PNG",
                        alt=t("card.spectrogram.alt", id=sample, **told(drawn)),
                    )
                    st.audio(str(run.preview(sample).sound))
        if drawn is not None:
            with st.container(border=True, width=spectrograms.CARD):
                st.markdown(f"**{t('card.difference')}** · {t('pair.side', side=1)} − {t('pair.side', side=2)}")
                louder = t("card.louder", louder=drawn.louder)
                st.image(
                    drawn.difference,
                    width="stretch",
                    output_format="PNG",
                    alt=f"{t('card.difference.alt', **told(drawn))} {louder}",
                )
                st.markdown(louder)
    if drawn is not None:
        st.markdown(f":small[{t('card.shown', reach=spectrograms.REACH, **told(drawn))}]")


def draw_pair(run: Run, pair: pd.Series) -> spectrograms.Pictures | None:
    """Both recordings of a pair and their difference in the band chosen; None where their sounds are not there, or not of one length."""
    sides = [str(pair["id1"]), str(pair["id2"])]
    sounds = [run.preview(side).sound for side in sides]
    if not all(sound.is_file() for sound in sounds):
        return None
    tones: tuple[float, ...] | None = None
    if st.session_state.get("band") != "full":
        samples = run.samples[run.samples["id"].isin(sides)]
        told_ = [spectrograms.tone_of(sample) for _, sample in samples.iterrows()]
        tones = tuple(tone for tone in told_ if tone is not None)
    try:
        return spectrograms.pictures(str(sounds[0]), str(sounds[1]), tones)
    except TracInError as failure:
        widgets.failure(failure)
        return None


def told(drawn: spectrograms.Pictures) -> dict[str, Any]:
    """What the pictures of a pair show, in numbers."""
    windows = {"window": spectrograms.WINDOW, "hop": spectrograms.HOP, "floor": -spectrograms.FLOOR_DB}
    return {"low": drawn.low, "high": drawn.high, "seconds": drawn.seconds, **windows}


def choose_band(run: Run) -> None:
    """Which frequencies the cards of recordings show: around their tone, or all; where there is nothing to hear, there is no choice."""
    if run.noun == "pair" and run.preview(str(run.samples["id"].iloc[0])).sound.is_file():
        widgets.choose_code("card.band", spectrograms.BANDS, key="band")


def sample_player(run: Run, sample_id: str) -> None:
    """A sample's picture, as the model sees it, its player and its text; says so where nothing of it is there."""
    preview = run.preview(sample_id)
    if not any(file.is_file() for file in preview):
        st.info(t("preview.missing", id=plain(sample_id)), icon=":material/hearing_disabled:")
    if preview.picture.is_file():
        st.image(
            str(preview.picture),
            output_format="PNG",
            width=360 if preview.sound.is_file() else 180,
            alt=t("spectrogram.alt", id=sample_id),
        )
    if preview.sound.is_file():
        st.audio(str(preview.sound))
    if preview.text.is_file():
        st.code(unsealed_text(preview.text.read_text(encoding="utf-8")), language=None, wrap_lines=True)


def ranked(examples: pd.DataFrame, *, key: str, reach: float) -> None:
    """The strongest examples as bars, on an axis that reaches so far from 0; says so where there is none."""
    if examples.empty:
        widgets.nothing_matches(t("ranked.none"))
        return
    named = examples.assign(name=[example_label(example) for _, example in examples.iterrows()])
    first = named.iloc[0]
    alt = t("ranked.words", n=len(named), name=first["name"], value=charts.short(first["influence"]))
    widgets.chart(charts.ranked_figure(named, "influence", "name", x=t("score.influence"), reach=reach), key=key, alt=alt)
