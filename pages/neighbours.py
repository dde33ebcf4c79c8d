"""Which training pairs helped a test pair, or a group of them, and which harmed it; and which tests did one training pair push?"""

from pages.shared import directions, frame, session, widgets

with frame.page("page.neighbours"):
    run = session.selected_run()
    view = session.view(run)
    widgets.require(run, "influence")
    direction = widgets.choose_code("neighbours.direction", tuple(directions.DIRECTIONS), key="direction")
    directions.DIRECTIONS[direction](run, view)
