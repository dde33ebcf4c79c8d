"""Cards side by side: what there is to see and hear of each entry, its score, and the buttons that decide about it; one component."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import streamlit as st

from pages.shared import examples, media, widgets
from pages.shared.i18n import t
from tracin_core.data.seals import unsealed_text
from tracin_core.records.runs import Run
from tracin_core.records.verdicts import VERDICTS, Verdict

KEYS: Final[dict[Verdict, str]] = {"exclude": "E", "keep": "K", "look_again": "N"}
SIGNS: Final[dict[Verdict, str]] = {"exclude": "✕", "keep": "✓", "look_again": "?"}
THUMB: Final = 124  # pixels across, of one sample or of both of a pair
LETTERS: Final = 400  # of a text; all of it is on the card of the one that is looked at


@dataclass(frozen=True)
class Card:
    """An entry, in words."""

    id: str
    name: str
    told: str
    verdict: str | None
    samples: tuple[str, ...]


def show(
    run: Run,
    sides: Sequence[tuple[str, Sequence[Card]]],
    *,
    current: str,
    frozen: str,
    on_look: Callable[[str], None],
    on_verdict: Callable[[str, Verdict], None],
) -> None:
    """The cards under the title of their side.

    Args:
        current: the id of the one that is looked at.
        frozen: why nobody can decide just now; empty where one can.
        on_look: called with the id of the card that was chosen, before the page is drawn again.
        on_verdict: called with the id and the verdict.
    """
    shown = [card for _, cards in sides for card in cards]
    tones = examples.tones_of(run, {sample for card in shown for sample in card.samples})
    drawn = [{"title": title, "cards": [drawn_card(run, card, tones) for card in cards]} for title, cards in sides]

    def looked() -> None:
        if asked := st.session_state["deck"]["look"]:
            on_look(str(asked))

    def decided() -> None:
        asked = st.session_state["deck"]["verdict"]
        if asked and asked["verdict"] in KEYS and asked["id"] in {card.id for card in shown}:
            on_verdict(str(asked["id"]), asked["verdict"])

    data = {"sides": drawn, "current": current, "frozen": frozen, "labels": labels()}
    _deck()(key="deck", data=data, on_look_change=looked, on_verdict_change=decided)


def drawn_card(run: Run, card: Card, tones: dict[str, float]) -> dict[str, Any]:
    """What the browser draws of a card."""
    width = 2 * THUMB // len(card.samples)  # two pixels for one, on fine screens
    pictures = [
        (media.picture_address(run, sample, width=width, tone=tones.get(sample)), t("spectrogram.alt", id=sample))
        for sample in card.samples
    ]
    previews = [run.preview(sample) for sample in card.samples]
    return {
        "id": card.id,
        "name": card.name,
        "told": card.told,
        "verdict": card.verdict,
        "pictures": [[address, words] for address, words in pictures if address],
        "sounds": [[address, sample] for sample in card.samples if (address := media.sound_address(run, sample))],
        "texts": [
            textwrap.shorten(unsealed_text(preview.text.read_text(encoding="utf-8")), LETTERS, placeholder=" …")
            for preview in previews
            if preview.text.is_file() and not preview.picture.is_file()
        ],
    }


def labels() -> dict[str, Any]:
    """The words of the buttons, their keys and the signs that stand on them."""
    names = {verdict: t(f"verdict.{verdict}") for verdict in VERDICTS if verdict in KEYS}
    return {"verdicts": names, "keys": KEYS, "signs": SIGNS, "decide": t("desk.decide"), "play": t("desk.play")}


@cache
def _deck() -> Callable[..., Any]:
    names = {kind: f"threshold/deck.{kind}" for kind in ("html", "css", "js")}
    return st.components.v2.component("threshold_deck", **{kind: widgets.asset(name) for kind, name in names.items()})
