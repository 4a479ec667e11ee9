"""Names from anywhere: what means the same is spelt the same, and nothing reaches a terminal but text."""

import doctest
import io
import sys

import numpy as np
import pytest

from wsss_afa import errors
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data import names
from wsss_afa.data.names import look, tidy, told_apart
from wsss_afa.errors import UserError, plain_console, printable, say
from wsss_afa.reports.visualize import (
    Panel,
    add_legend,
    confusion_figure,
    contact_sheet,
    picture_grid,
    to_pixels,
)

NAMES = (
    "car [/b]",
    "[red]",
    "US$ 5$",
    "<b>x</b>",
    "N/A",
    "a_{1}",
    "_hidden",
    "$\\frac$",
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "\ud800",
    "caf\udce9",
    "γάτα",
    "ca\u200bt",
    "\u202etac",
    ":smile:",
    "a\x85b\x1cc",
    "%s {0}",
    "犬",
    "x" * 300,
)
"""What has broken a terminal, a picture or a page."""


def test_examples():
    assert doctest.testmod(errors).failed == doctest.testmod(names).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_printable_text_is_one_line_that_hides_nothing(name):
    shown = printable(name)
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode()
    assert str(UserError(f"{name} is wrong: mend it")) == f"{shown} is wrong: mend it"


def test_an_error_is_the_last_line_of_a_loader_process():
    trace = "Caught UserError in worker 0.\n  ...\nwsss_afa.errors.UserError: a.jpg is broken: copy it\n"
    assert str(UserError(trace)) == "a.jpg is broken: copy it"


SAME = (
    "hot dog",
    "hot\u00a0dog",
    " hot  dog",
    "hot\tdog\r\n",
    "hot d\u200bog",
    "\ufeffhot dog",
    "ho\u00adt dog",
    "hot\u2028dog",
    "hot\u3000dog",
    "hot dog\u2060",
    "hot\u2800dog",
    "hot dog\ufe0f",
)


@pytest.mark.parametrize("name", SAME)
def test_what_nobody_sees_makes_no_other_name(name):
    assert tidy(name) == "hot dog"


def test_a_name_has_one_form():
    assert tidy("Vo\u0308gel") == tidy("V\u00f6gel") == "Vögel"
    assert tidy("a\x1b[1m\ud800") == "a\\x1b[1m\\ud800"
    for name in NAMES:
        assert tidy(tidy(name)) == tidy(name) == printable(tidy(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "Cat"),
        ("cat", "c\u0430t"),
        ("cat", "ｃａｔ"),
        ("d'or", "d’or"),
        ("t-shirt", "t–shirt"),
        ("fish", "ﬁsh"),
    ],
)
def test_names_that_look_alike_are_told_apart(one, other):
    assert look(one) == look(other)
    shown = told_apart(one, other)
    assert shown.isascii()
    assert look("cat") != look("dog")


def test_a_terminal_gets_what_was_named(capsys):
    say("data", "[red]\x1b[31m :smile: \ud800 [/x]")
    plain_console().print("[/b] :cat:")
    assert capsys.readouterr().out == "data      [red]\\x1b[31m :smile: \\ud800 [/x]\n[/b] :cat:\n"


def test_a_console_without_the_letters_gets_them_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["inspect_data", "--help"])

    @entry_point("inspect_data")
    def program(cfg):
        return 0.0

    program()
    say("data", "γάτα")
    print("犬 \udce9")
    stream.flush()
    assert stream.buffer.getvalue().endswith(b"data      \\u03b3\\u03ac\\u03c4\\u03b1\n\\u72ac \\udce9\n")


@pytest.mark.filterwarnings("error")
def test_pictures_take_every_name():
    picture = np.zeros((20, 30, 3), np.uint8)
    classes = list(enumerate(NAMES[:-1], 1))
    assert add_legend(picture, classes).shape[1] >= 30
    rows = [("\n".join(NAMES), [Panel("image", picture)])]
    figure = picture_grid(rows, classes)
    assert [each.get_text() for each in figure.legends[0].get_texts()] == [
        *map(printable, NAMES[:-1]),
        "ignored",
    ]
    for each in (
        figure,
        contact_sheet([(name, picture) for name in NAMES]),
        confusion_figure(np.eye(len(NAMES), dtype=int), NAMES),
    ):
        assert to_pixels(each).std() > 0
