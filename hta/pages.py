"""Self-contained pages for a browser: templates filled with plain data, and charts by matplotlib in the page's colours.

A page needs no network and may be opened from disk. Everything that a template prints is escaped, file names that are
not UTF-8 included.
"""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hta.files import printable, write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

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


def write_page(path: Path, template: str, **data: Any) -> None:
    """Fill a template and write the page; the same data gives the same bytes.

    Args:
        path: the page; an existing one is replaced.
        template: its path below the package.
        data: what the template names; a name that is missing is an error.

    Raises:
        RunError: the page cannot be written.
    """
    write_atomically(path, _environment().get_template(template).render(data, palette=PALETTE).encode())


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hta", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"size": _size, "percent": _percent}
    return environment


def _printable(value: Any) -> Any:
    """A value of a template; of a string, or markup, what can be printed."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def _size(size: tuple[int, int]) -> str:
    """(height, width) as "width × height px", on one line."""
    return f"{size[1]}\xa0\xd7\xa0{size[0]}\xa0px"


def _percent(rate: float) -> str:
    """A share in [0, 1] with one digit after the point at most; two significant ones below 1 %."""
    value = 100 * rate
    return f"{value:.2g} %" if 0 < value < 1 else f"{value:.1f} %".replace(".0 %", " %")


# --- charts -----------------------------------------------------------------------------------------------------------


@contextmanager
def chart_style() -> Iterator[dict[str, str]]:
    """The style of charts; they are drawn and saved within the block.

    Yields:
        The colours to draw with by the names of `PALETTE`.
    """
    import matplotlib

    colours = {name: light for name, (light, _) in PALETTE.items()}
    style: dict[Any, Any] = {
        "font.size": 10,
        "text.color": colours["soft"],
        "axes.facecolor": "none",
        "axes.edgecolor": colours["soft"],
        "axes.labelcolor": colours["soft"],
        "axes.labelsize": 9,
        "axes.titlecolor": colours["ink"],
        "axes.titlesize": 10,
        "axes.formatter.useoffset": False,
        "xtick.color": colours["soft"],
        "xtick.labelsize": 9,
        "ytick.color": colours["soft"],
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "hta",  # makes the names of the parts the same every time
    }
    with matplotlib.rc_context(style):
        yield colours


def inline_svg(figure: "Figure", name: str, about: str) -> "Markup":
    """A figure as part of a page, in the page's font and colours.

    Args:
        figure: drawn in `chart_style`.
        name: unique in the page; the names of the drawing's parts begin with it.
        about: what it shows, for those who cannot see it.
    """
    from markupsafe import Markup, escape

    picture = io.StringIO()
    # The metadata would hold the date.
    figure.savefig(
        picture, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(about)}"', 1)
    for start in ('id="', 'href="#', "url(#"):
        svg = svg.replace(start, f"{start}{name}-")
    for colour, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{colour})")
    return Markup(svg)
