"""Self-contained pages for a browser: templates filled with plain data, and charts by matplotlib in the page's colours.

A page needs no network and may be opened from disk. Everything that a template prints is escaped, also what is not
UTF-8 in a file name, and characters that would not be seen or would reorder the text around them.
"""

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from hta.files import printable, write_atomically

PALETTE = {
    "paper": ("#fafaf8", "#15181b"),
    "card": ("#ffffff", "#1d2125"),
    "ink": ("#20262c", "#e4e7e9"),
    "soft": ("#5b6570", "#a0a9b1"),
    "line": ("#dcded9", "#3a4147"),
    "accent": ("#2f6f91", "#74b3d3"),
    "warn": ("#a2560b", "#e2a45c"),
    "blue": ("#0072b2", "#56b4e9"),
    "orange": ("#d55e00", "#e69f00"),
    "green": ("#1b7f4b", "#4cbf8a"),
    "grey": ("#767676", "#9a9a9a"),
}
"""Colours of pages and charts by name: on a light screen and on a dark one."""

COLOURS = {name: light for name, (light, _) in PALETTE.items()}
"""What charts are drawn with."""


_SURROGATES = re.compile("[\ud800-\udfff]")


def _printable(value: Any) -> Any:
    """A value of a template; of a string, or markup, what can be printed."""
    if isinstance(value, Markup):
        return Markup(_SURROGATES.sub(lambda found: printable(found[0]), value))
    return printable(value) if isinstance(value, str) else value


_ENVIRONMENT = Environment(
    loader=PackageLoader("hta", ""),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}


def write_page(path: Path, template: str, **data: Any) -> None:
    """Fill a template and write the page; the same data gives the same bytes.

    Args:
        path: the page; an existing one is replaced.
        template: its path below the package; every name in it that is not in `data` is an error.

    Raises:
        RunError: the page cannot be written.
    """
    write_atomically(path, _ENVIRONMENT.get_template(template).render(data, palette=PALETTE).encode())


def chart_style() -> AbstractContextManager[None]:
    """The style of charts, for a block in which they are drawn, with `COLOURS`, and saved."""
    soft = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    small = ("axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    style: dict[Any, Any] = dict.fromkeys(soft, COLOURS["soft"]) | dict.fromkeys(small, 9)
    style |= {"axes.titlecolor": COLOURS["ink"], "axes.titlesize": 10, "font.size": 10, "legend.frameon": False}
    style |= {"axes.facecolor": "none", "axes.formatter.useoffset": False, "svg.fonttype": "none"}
    return matplotlib.rc_context(style | {"svg.hashsalt": "hta"})  # the parts of a drawing always get the same names


def inline_svg(figure: Figure, name: str, about: str) -> Markup:
    """A figure that was drawn in `chart_style` as part of a page, in the page's font and colours.

    Args:
        name: unique in the page; the names of the drawing's parts begin with it.
        about: what it shows, for those who cannot see it.
    """
    picture = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # would hold the date
    figure.savefig(picture, format="svg", transparent=True, metadata=no_metadata)
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(about)}"', 1)
    for start in ('id="', 'href="#', "url(#"):
        svg = svg.replace(start, f"{start}{name}-")
    for name_of_colour, light in COLOURS.items():
        svg = svg.replace(light, f"var(--{name_of_colour})")
    return Markup(svg)
