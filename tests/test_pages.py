"""Pages and charts: everything printed is escaped, nothing is missing, drawings of one page keep apart."""

import os
import re

import jinja2
import pytest
from matplotlib.figure import Figure

from hta import pages
from hta.pages import COLOURS, chart_style, inline_svg, write_page


@pytest.fixture
def page_of(monkeypatch, tmp_path):
    """The text of the page that a template makes of data."""

    def write(text, **data):
        loaders = [jinja2.DictLoader({"t": text}), pages._ENVIRONMENT.loader]
        monkeypatch.setattr(pages, "_ENVIRONMENT", pages._ENVIRONMENT.overlay(loader=jinja2.ChoiceLoader(loaders)))
        write_page(tmp_path / "page.html", "t", **data)
        return (tmp_path / "page.html").read_text()

    return write


def test_what_a_template_prints_is_escaped_and_can_be_written(page_of):
    text = "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(name) }} {{ names | join('&') }} {{ number }}"
    name, once = os.fsdecode(b"<b>\xe9"), r"&lt;b&gt;\xe9"
    assert page_of(text, name=name, names=[name, "é"], number=3) == f"{once}{once} {once}&amp;é 3"


def test_a_name_that_is_missing_is_an_error(page_of, tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="nmae"):
        page_of("{{ nmae }}", name=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0 %"), (1, "100 %"), (0.05, "5 %"), (0.4545, "45.5 %"), (0.0012345, "0.12 %")]
)
def test_rates_are_short(page_of, rate, text):
    assert page_of('{% from "macros.html" import percent %}{{ percent(rate) }}', rate=rate) == text


def draw(name):
    with chart_style():
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1], color=COLOURS["blue"], clip_on=True)
        return inline_svg(figure, name, 'a "line"')


def test_a_drawing_takes_the_colours_of_the_page_and_names_of_its_own():
    one, other = draw("one"), draw("other")
    assert one == draw("one")
    assert one.startswith('<svg role="img" aria-label="a &#34;line&#34;"')
    assert "stroke: var(--blue)" in one
    assert not [light for light in COLOURS.values() if light in one]
    names = [re.findall(r'\bid="([^"]*)"', svg) for svg in (one, other)]
    assert not set(names[0]) & set(names[1])
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', one)
    assert used
    assert set(used) <= set(names[0])
    assert "<metadata" not in one
