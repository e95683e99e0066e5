"""JSON values are counted without the strings, in whatever parts the text is read."""

import json
import random

import pytest

from service.errors import InvalidRequest
from service.http.parsing import check_values

PART_BYTES = 2**16
CHARACTERS = ['"', "\\", ",", "[", "{", "\n", "a", "\N{GRINNING FACE}"]


def counted(text: str) -> int:
    """The number of values that the service counts."""
    with pytest.raises(InvalidRequest) as refused:
        check_values(bytearray(text.encode()), 0)
    return int(refused.value.members["got"])


@pytest.mark.parametrize("ascii_only", [True, False])
def test_strings_count_as_values_and_their_characters_do_not(ascii_only: bool) -> None:
    drawn = random.Random(1)
    for _ in range(5):
        texts = ["".join(drawn.choices(CHARACTERS, k=drawn.randrange(1_500))) for _ in range(300)]
        document = json.dumps({text: [text] for text in texts}, ensure_ascii=ascii_only)
        assert len(document) > PART_BYTES
        assert counted(document) == 2 * len(json.loads(document))


@pytest.mark.parametrize("end", ['\\\\"', '\\""', "\\\\" * 70_000 + '"', '\\n,"'])
def test_an_escape_may_be_cut(end: str) -> None:
    for shift in range(6):
        assert counted('["' + "x" * (PART_BYTES - 6 + shift) + end + ', ",,"]') == 2


def test_text_that_is_not_json_is_counted_to_its_end() -> None:
    assert counted("[" + "\\" * (2 * PART_BYTES + 1)) == 1
    assert counted('["' + "," * PART_BYTES) == 1


def test_a_long_name_is_refused_but_not_a_long_string() -> None:
    for space in ("", " ", "\n" * 3 * PART_BYTES):
        for start in range(3):
            text = "," * (2 * PART_BYTES + start)
            assert counted(f'{{"a": "{text}"{space}, "b": "{text}"{space}}}') == 2
            with pytest.raises(InvalidRequest, match="name"):
                check_values(f'{{"{text}"{space}: 1}}'.encode(), 1_000)
