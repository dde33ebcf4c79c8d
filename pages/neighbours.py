"""Which training pairs helped one test pair, and which ones harmed it?"""

import streamlit as st

from pages.shared import examples, frame, session, widgets
from pages.shared.i18n import t
from tracin_core import charts

SHOWN, ROWS = 10, 20

with frame.page("page.neighbours"):
    run = session.selected_run()
    view = session.view(run)
    widgets.require(run, "influence")
    test = examples.choose_test(view.test_pairs, dead=view.dead_tests, key="test", label=t("neighbours.test"))
    with st.expander(t("neighbours.listen"), icon=":material/hearing:"):
        examples.example_card(run, view.test_pairs.iloc[view.test_row(test)])
    sides = dict(zip(("proponents", "opponents"), view.top(test, k=ROWS), strict=True))
    if all(side.empty for side in sides.values()):
        widgets.nothing_matches(t("neighbours.dead"))
    else:
        for (name, ranked), column in zip(sides.items(), st.columns(2, gap="large"), strict=True):
            with column:
                st.subheader(t(f"neighbours.{name}"))
                examples.ranked(ranked.head(SHOWN), key=f"neighbours.{name}")
        side = widgets.choose_code("side", tuple(sides), key="side")
        columns = examples.influence_columns()
        picked = examples.explore(
            run, sides[side], key=f"neighbours.{side}.{test}", columns=columns, rows=ROWS, total=view.count(test, side)
        )
        if picked is not None:
            widgets.require(run, "contributions")
            figure = charts.contributions_figure(
                view.contributions(picked, test), view.checkpoint_names, x=t("axis.checkpoint"), y=t("score.influence")
            )
            st.markdown(f"**{t('neighbours.by_checkpoint')}**")
            widgets.chart(figure, key="neighbours.contributions", alt=t("neighbours.by_checkpoint"))
