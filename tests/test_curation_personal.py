"""Personal data: what has a form is masked in every common form, and other numbers are left alone.
"""

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timing import growth

from course_lib.curation.personal import EMAIL, mask_personal
from course_lib.world.crawl import draw_personal
from course_lib.world.documents import KINDS

fixed = settings(deadline=None, derandomize=True, max_examples=60)

TELEPHONES = (
    # North America: brackets, hyphens, full stops, the leading 1, an extension
    "(555) 555-0123", "(555)555-0123", "(555)-555-0123", "+1 (555) 555-0123", "+1(555)555-0123",
    "+1 555 555 0123", "+1-555-555-0123", "+1.555.555.0123", "555-555-0123", "555 555-0123",
    "555.555.0123", "1-800-555-0123", "1 (800) 555-0123", "212-555-3000", "+1 212 555 3000",
    "555-555-0123 x45", "555-555-0123 ext. 45", "555-555-0123x45", "555-555-0123-45",
    # signs that are not on the keyboard: no-break and thin spaces, en dash, no-break hyphen
    "(555)\u00a0555-0123", "+1\u00a0555\u00a0555\u00a00123", "01632\u00a0960123",
    "555\u202f555\u202f0123", "020\u20097946\u20090123", "555\u2013555\u20130123",
    "555\u2011555\u20110123", "0172\u20141234567", "0172 \u2013 1234567",
    # a slash or a dash behind the area code, direct dialling
    "030/1234567", "0172/1234567", "0172 / 1234567", "0172 - 1234567", "030/123456-78",
    "030/1234567-0", "(030)1234567", "(030)/1234567", "(030) 123 45 67", "+49 30/123456-78",
    # the international form
    "+15555550123", "+493012345678", "+49 30 123456", "(+49) 30 123456", "+49 (0)30 123456",
    "+49 (0) 30 123456", "+49(0)30/123456", "+44 20 7946 0123", "+44 (0)20 7946 0123",
    "0044 20 7946 0123", "00 44 20 7946 0123", "+33 1 23 45 67 89", "+34 912 345 678",
    "+48 601-234-567", "+82 10-1234-5678", "+91 98765 43210",
    # other countries' own forms
    "01632 960123", "020 7946 0123", "01 23 45 67 89", "01.23.45.67.89", "01-23-45-67-89",
    "044 123 45 67", "010-1234-5678", "02-1234-5678", "06-12345678", "010-12345678",
    "98765 43210", "912 345 678", "601 234 567",
)  # fmt: skip
OTHERS = (
    # dates and times
    "2024-05-17", "17.05.2024", "05/17/2024", "17/05/2024", "17 05 2024", "2024-05-17T10:30:00",
    "2024-05-17 10:30:00", "20240517 103000", "05.06.2024 12:30", "01.02.2024 14.30",
    "01-02-2024 1430", "01.02.2024-05.03.2024", "01.02.2024 \u2013 05.03.2024",
    "01/02/2024 05/03/2024", "01-02-2024 05-03-2024", "7.5.2024 9.6.2024", "10:30-11:45",
    "10.30\u201311.45", "08.30-12.00 13.00-17.30", "0900-1730", "1990-2000", "1990\u20132000",
    "1998 1999 2000", "1990-2000-2010", "From 1990 2000 cats came.",
    # numbers of books and journals
    "978-0-306-40615-7", "978 0 306 40615 7", "978\u20130\u2013306\u201340615\u20137",
    "978-0306406157", "978-3-16-148410-0", "978-0-07-123456-7", "978-99921-58-10-7",
    "0-306-40615-2", "0-07-123456-7", "0 07 123456 7", "99921-58-10-7", "0306406152",
    "ISSN 1234-5678", "10.1000/182", "10.1038/123456", "10.1016/123456789",
    # sums, amounts, decimal numbers, ranges
    "12 + 3 = 15. 15 - 4 = 11.", "12345 + 67890", "12345 - 67890 = -55545", "12345 / 67890",
    "1234.567890", "12345.6789", "3.141592653589", "12.345 67.890", "12.345 167.890",
    "37.774929 122.419415", "$ 1299.99", "$ 100 200 300", "123 456 789 \u20ac", "123 456 789 EUR",
    "100 000 000", "100\u00a0000\u00a0000", "1\u202f234\u202f567\u202f890", "2 000 000 000",
    "12 345 678 901", "100.000.000", "1,234,567,890", "10,000\u201320,000", "10000\u201320000",
    "10000-20000", "10000 20000", "1/2 3/4 5/6 7/8 9/10", "12 34 56 78 90",
    "01 02 03 04 05", "01 02 03 04 05 06", "01 05 12 23 34 41", "01 02 03 04 05 06 07 08 09 10",
    "55, 18, 7, 47", "+0.123456789",
    # other numbers with a form
    "12345-6789", "192.168.100.200", "v1.2.3 2024.05.17", "4111 1111 1111 1111",
    "4111-1111-1111-1111", "1234-5678-9012-3456-7890", "DE89 3704 0044 0532 0130 00",
    "1634567890", "123456789012", "0x12345678 90", "2024/123456789", "1. 23 -> 24",
)  # fmt: skip


@given(st.emails(), st.sampled_from(["{}", "Write to {}.", "mail:{}, or call", "<{}>", "a\n{}\nb"]))
@example("mia.oak+x@example.org", "Write to {}.")
@settings(fixed, max_examples=30)
def test_no_address_survives(address, frame):
    masked = mask_personal(frame.format(address))
    assert "@" not in masked and "[email]" in masked
    assert mask_personal(masked) == masked


@given(st.integers(0, 10**6), st.sampled_from(["Call {} now.", "{}", "({})", "at {} or not"]))
@fixed
def test_all_that_the_crawl_invents_is_masked(seed, frame):
    item = draw_personal(random.Random(seed))
    word = "[email]" if "@" in item else "[phone]"
    assert mask_personal(frame.format(item)) == frame.format(word)


@pytest.mark.parametrize("number", TELEPHONES, ids=ascii)
def test_a_telephone_number_is_masked_whole(number):
    for frame in ("{}", "Call {} now.", "({})", "Tel. {}, or not", "tel:{}", "Tel.{}", "a\n{}\nb"):
        assert mask_personal(frame.format(number)) == frame.format("[phone]")


@pytest.mark.parametrize("text", OTHERS, ids=ascii)
def test_other_numbers_stay(text):
    for frame in ("{}", "on {} or not", "({})", "see {}.", "{}, {}", "a\n{}\nb"):
        assert mask_personal(frame.format(text, text)) == frame.format(text, text)


def test_numbers_beside_a_telephone_number():
    """Two in a row have 22 digits and were both left; what follows one is not swallowed."""
    assert mask_personal("01632 960123 01632 960124") == "[phone] [phone]"
    assert mask_personal("+44 20 7946 0123 +44 20 7946 0124") == "[phone] [phone]"
    assert mask_personal("555-555-0123/555-555-0124") == "[phone]/[phone]"
    assert mask_personal("+44 20 7946 0123 20245") == "[phone] 20245"
    assert mask_personal("Room 7 01632 960123") == "Room 7 [phone]"
    assert mask_personal("call 01632 960123 before 12") == "call [phone] before 12"


def test_eight_digits_are_too_few_and_sixteen_too_many():
    assert mask_personal("030/123456") == "[phone]" != mask_personal("030/12345") == "030/12345"
    assert mask_personal("+123456789012345") == "[phone]"
    assert mask_personal("+1234567890123456") == "+1234567890123456"


@pytest.mark.parametrize("kind", KINDS)
def test_the_worlds_own_documents_are_left_alone(kind):
    rng = random.Random(0)
    for _ in range(100):
        text = KINDS[kind](rng)
        assert mask_personal(text) == text


# --- time ---------------------------------------------------------------------------------------

PLAIN_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)+")
"""The HTML standard's pattern as it stands there: the slow reference."""


@given(st.text(alphabet="ab.@-/+ 1é\n", max_size=40))
@example("mia@example.org/tom@example.org")
@example("a@b@c.de")
@example("a@b.c.@d.e")
@settings(fixed, max_examples=500)
def test_addresses_are_those_of_the_plain_pattern(text):
    fast = EMAIL.sub(lambda m: "[email]" if m[2] else m[0], text)
    assert fast == PLAIN_EMAIL.sub("[email]", text)


@pytest.mark.parametrize("piece", ["a", "a.", "a@", "a@b", "a@b.", "@", "1", "01 ", "+1 ", "+1(1)",
                                   "(030)", "1 (", "555-555-0123-", "555 555 555 "])  # fmt: skip
def test_the_time_grows_with_the_text(piece):
    """The address pattern took 16 times as long for four times as many letters in a row."""
    assert growth(mask_personal, piece) < 9


@pytest.mark.parametrize("piece", ["a", "+1(1)", "01 "])
def test_a_megabyte_of_it_passes(piece):
    """Half an hour before, for letters."""
    text = piece * (10**6 // len(piece))
    assert len(mask_personal(text + " mia@example.org")) == len(text) + len(" [email]")
