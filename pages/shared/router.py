"""The script behind every page: the frame, then the page that the address names."""

from pages.shared import frame

frame.show()
