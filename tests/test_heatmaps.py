"""Grids of off-target ratios and of answers, and how a terminal shows them."""

import re

from plumbing.score.heatmaps import confusion_grid, draw_grid, draw_reports, off_target_grid

DIRECTIONS = {
    "en-it": {"otr": 5.0, "answered": {"it": 19, "en": 1}},
    "it-nl": {"otr": 75.0, "answered": {"nl": 5, "en": 10, "de": 2, "fr": 2, "empty": 1}},
    "en-nl": {"otr": 0.0, "answered": {"nl": 20}},
}


def test_a_direction_that_was_not_measured_is_no_zero():
    grid = off_target_grid(DIRECTIONS)
    assert (grid.rows, grid.columns) == (["en", "it"], ["it", "nl"])
    assert grid.cells == [[5.0, 0.0], [None, 75.0]]


def test_answers_are_shares_of_what_was_asked_for():
    grid = confusion_grid(DIRECTIONS, [])
    assert (grid.rows, grid.columns) == (["it", "nl"], ["en", "it", "nl", "else", "empty"])
    assert grid.cells == [[5.0, 95.0, 0, 0, 0], [25.0, 0, 62.5, 10.0, 2.5]]
    grid = confusion_grid(DIRECTIONS, [("it", "nl")])
    assert grid.rows == ["nl"] and grid.cells == [[50.0, 0, 25.0, 20.0, 5.0]]
    assert "zero-shot" in grid.title and all(sum(row) == 100 for row in grid.cells)


def test_a_terminal_shows_every_figure_in_its_own_cell():
    text = draw_grid(off_target_grid(DIRECTIONS))
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert plain.split("\n")[1:] == [
        "          it    nl",
        "en       5.0   0.0",
        "it         -  75.0",
    ]
    shades = [int(x) for x in re.findall(r"48;5;(\d+)m", text)]
    assert shades[0] == shades[1] == 231 != shades[2]
    assert text.count("\x1b[0m") == 3  # no colour runs on
    both = draw_reports({"a": {"directions": DIRECTIONS}, "b": {"directions": DIRECTIONS}}, [])
    assert both.count("OTR, %") == 2 and "b: all outputs, %" in both
