"""Text of unknown origin in a terminal: shown as it is, without effect."""

from rich.console import Console
from rich.text import Text

from fastrlhf.report.text import printable


def literal(text: object, console: Console, style: str = "") -> Text:
    """`text` with no markup read in it, no control code left in it and nothing the console cannot encode.

    Args:
        text: any object; what is no string is turned into one with ``str``.
        console: the console that will print it.
        style: a rich style for all of it.
    """
    encoding = console.encoding
    # rich writes strictly, so that one emoji on a Latin-1 terminal would end the run.
    encodable = printable(text).encode(encoding, errors="replace").decode(encoding)
    return Text(encodable, style=style)
