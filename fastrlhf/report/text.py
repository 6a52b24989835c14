"""Text of unknown origin, such as a completion, made fit to be shown in a page, a plot or a terminal."""

# The direction marks that can make a line read differently from what it holds (U+202A-E, U+2066-9), and the
# 8-bit control codes, some of which start a terminal's escape sequences just as ESC does.
_HIDDEN = dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
# The control codes have pictures of their own: U+2400 is the picture of NUL, U+241B that of ESC.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
# Half of a surrogate pair cannot be encoded as UTF-8.
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_NONCHARACTERS = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}
_VISIBLE = _HIDDEN | _PICTURES | _SURROGATES | _NONCHARACTERS


def printable(text: object) -> str:
    r"""`text` with everything that is not printable made visible; line ends (``\n``) and tabs stay.

    Control codes become their Unicode pictures (ESC becomes ␛), and lone surrogates, noncharacters, 8-bit
    control codes and marks that turn the direction of writing become the replacement character. The result is
    valid as UTF-8 and moves no terminal's cursor. It is not escaped for HTML or for rich's markup.

    Args:
        text: any object; what is no string is turned into one with ``str``.
    """
    return str(text).replace("\r\n", "\n").translate(_VISIBLE)
