"""Personal data that has a form: e-mail addresses and telephone numbers, masked in place.

A telephone number is told from other numbers by how it is written, so a few rules decide
(``PHONE``, ``_is_other``). E.164 allows at most 15 digits; below nine there are too many other
numbers.
Simplified away: names and postal addresses (they need a tagger); numbers without any sign of being
one: all digits in a row, or two groups without a plus, a bracket or a leading 0. Five pairs of
digits of which the first begins with 0 count as a French number, though they may be a lottery's.
"""

import re

EMAIL = re.compile(r"([\w.!#$%&'*+/=?^`{|}~-]++)(@[\w-]++(?:\.[\w-]++)+)?")
"""The HTML standard's pattern for e-mail addresses, letters of any alphabet allowed.

It matches every run of such characters, and the second group is there where the run begins an
address: so each run is read once. With the @ required, a run of n characters without one would be
tried from each of them, in n²/2 steps.
"""

SPACE = r"[ \t\u00a0\u2007\u2009\u202f]"  # also those at which no line breaks
DASH = r"[-\u2010-\u2015\u2212]"  # hyphens, en and em dash, minus
JOINT = rf"(?:{SPACE}|{DASH}|\.)"
WIDE = rf"(?:{SPACE}?(?:{DASH}|/){SPACE}?|{SPACE}|\.)"  # behind an area code
PHONE = re.compile(
    r"(?<!\w)(?<!\d[-.,:\u2010-\u2015\u2212])(?:"
    # +1 555-555-0123, (+49) 30/123456, +44 (0)20 7946 0123, +493012345678, 0044 20 7946 0123
    rf"(?:\+[1-9]\d*+|\(\+\d{{1,3}}\)|00{SPACE}?[1-9]\d++)"
    rf"(?:{WIDE}?\(\d{{1,5}}\)|{WIDE}\d++|(?<=\))\d++){{0,6}}"
    # (555) 555-0123, 1 (800) 555-0123, (030)123456, (0172)/123 45 67
    rf"|(?:1{JOINT}?)?\(\d{{2,5}}\){WIDE}?\d{{2,8}}(?:{JOINT}\d{{2,6}}){{0,4}}"
    # 01632 960123, 030/123456-78, 0172 / 1234567, 01 23 45 67 89, 010-1234-5678
    rf"|0[1-9]\d{{0,3}}{WIDE}\d{{2,8}}(?:{JOINT}\d{{2,6}}){{0,4}}"
    # 555-555-0123, 1-800-555-0123; 912 345 678, 601-234-5678
    rf"|(?:1{JOINT})?\d{{3}}{JOINT}\d{{3}}{JOINT}\d{{4}}(?!\d)"
    rf"|\d{{2,5}}(?:{JOINT}\d{{3,6}}){{2,3}}"
    # 98765 43210
    rf"|[6-9]\d{{4}}{SPACE}\d{{5}}"
    rf")(?:-\d{{1,4}})?(?:{SPACE}?(?:x|ext\.?){SPACE}?\d{{1,5}})?"
    rf"(?!\w|[.,:]\d|{DASH}\d)"
)
"""What may be a telephone number. Every alternative is bounded, or possessive and begins with a
plus, so that the time grows with the length of the text."""
LEAST, MOST = 9, 15
"""Digits of a telephone number; more are several numbers in a row."""

# What else has such a form: see _is_other.
DATE = re.compile(rf"\d{{1,2}}({JOINT}|/)\d{{1,2}}\1\d{{4}}(?!\d)")
MONEY_BEFORE = re.compile(r"[$€£¥₩]\s?\Z")
IN_A_ROW = re.compile(rf"\d{SPACE}\||\|{SPACE}\d")
THOUSANDS_BEFORE = re.compile(rf"(?<!\d)\d{{1,3}}{SPACE}\Z")
MONEY_AFTER = re.compile(r"\s?(?:[%€$£¥₩]|(?:EUR|USD|GBP|KRW)\b)")


def _is_other(number: str, before: str, behind: str) -> bool:
    """Whether digits without plus and bracket are another kind of number, by their form.

    Args:
        before: the five characters in front of it.
        behind: the two that follow.
    """
    groups = re.findall(r"\d+", number)
    joints = set(re.findall(r"\D+", number))
    trunk = re.match("0[1-9]", number) is not None
    thousands = (len(joints) == 1 and not trunk and len(groups[0]) <= 3
                 and all(len(g) == 3 for g in groups[1:]))  # fmt: skip
    pairs = all(len(g) == 2 for g in groups)
    return (
        pairs and (len(groups) != 5 or all(g[0] == "0" for g in groups)  # 01 02 03 04 05 06
                   or IN_A_ROW.search(before + "|" + behind) is not None)
        or "." in joints and len(joints) > 1  # decimal numbers side by side
        or joints == {"."} and len(groups) == 2 and not trunk  # one decimal number
        or joints == {"."} and len(groups) == 4 and all(int(g) < 256 for g in groups)  # IP address
        or DATE.match(number) is not None
        or all(len(g) == 4 and 1500 <= int(g) <= 2100 for g in groups)  # years
        or thousands and (len(groups) != 3 or len(groups[0]) < 3 or groups[-1] == "000"
                          or THOUSANDS_BEFORE.search(before) is not None)  # 100 000 000
        or groups[0] in ("978", "979") and sum(map(len, groups)) == 13  # ISBN
    )  # fmt: skip


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _end_of_telephone(match: re.Match) -> int | None:
    """Where the number ends; None if it is none.

    Too many digits are more than one number, if the first begins like one: it ends before the last
    groups. Without a plus, a bracket or a 0 they are the number of a card or an account.
    """
    text, start, end = match.string, match.start(), match.end()
    while _digits(text[start:end]) > MOST and text[start] in "(+0":
        spaces = list(re.finditer(SPACE, text[start:end]))
        if not spaces:
            return None
        end = start + spaces[-1].start()
    number = re.split("[xe]", text[start:end])[0].strip()  # without its extension
    before, behind = text[max(start - 5, 0) : start], text[end : end + 2]
    if (
        not LEAST <= _digits(number) <= MOST
        or MONEY_BEFORE.search(before)
        or MONEY_AFTER.match(text, end)
        or ("(" not in number and number[0] != "+" and _is_other(number, before, behind))
    ):
        return None
    return end


def mask_telephones(text: str) -> str:
    """Telephone numbers of 9 to 15 digits become ``[phone]``."""
    parts, done, position = [], 0, 0
    while match := PHONE.search(text, position):
        end = _end_of_telephone(match)
        if end is None:
            position = match.end()
            continue
        parts += [text[done : match.start()], "[phone]"]
        done = position = end
    return "".join([*parts, text[done:]])


def mask_personal(text: str) -> str:
    """E-mail addresses become ``[email]``, telephone numbers of 9 to 15 digits ``[phone]``.

    Example:
        >>> mask_personal("Write to mia@example.org or call 01632 960123 before 12.")
        'Write to [email] or call [phone] before 12.'
    """
    return mask_telephones(EMAIL.sub(lambda m: "[email]" if m[2] else m[0], text))
