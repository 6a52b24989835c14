"""Nothing that a model can write moves a cursor, breaks an encoder or hides."""

import pytest

from fastrlhf.report.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ümläut, 漢字, 👩‍🔬", "plain text, ümläut, 漢字, 👩‍🔬"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("dos\r\nline", "dos\nline"),
        ("\x1b[2J", "␛[2J"),
        ("\x00\x07\r\x7f", "␀␇␍␡"),
        ("\x9b31m", "\ufffd31m"),
        ("\ud83d \udc00", "\ufffd \ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        (17, "17"),
    ],
    ids=ascii,
)
def test_hidden_characters_become_visible(text, shown):
    assert printable(text) == shown


def test_every_character_can_be_encoded_and_none_is_a_control_code():
    shown = printable("".join(map(chr, range(0x110000))))
    shown.encode()
    controls = {character for character in shown if ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0}
    assert controls == {"\n", "\t"}
