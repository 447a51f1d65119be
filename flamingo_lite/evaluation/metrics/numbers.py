"""Numbers in a text: whole ones in canonical form, and any number with a tolerance and its sign.

The official VL-ICL pattern `\\d+` loses the minus sign, so that a negative answer could never match.
"""

import math
import re
import unicodedata

from flamingo_lite.evaluation.metrics.scored import Scored

# Signs that models write: hyphen-minus, minus sign, en dash.
_SIGN = r"[-\u2212\u2013+]"
# 18 digits: int() of a longer run may raise, and no answer is that long.
_WHOLE = re.compile(rf"({_SIGN})?\s*([0-9]{{1,18}})\.?")
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_VALUE = re.compile(rf"({_SIGN})?\s*\$?\s*({_DECIMAL})(?:[eE]({_SIGN}?[0-9]{{1,3}}))?\s*(%)?\.?")
# Inside a sentence a range, a fraction, a date or a version is no number, and neither are its parts.
_INSIDE = re.compile(
    rf"(?<!\w)(?<!{_SIGN})(?<![.,])(?<![0-9][/:])({_SIGN}?(?:{_DECIMAL}))(?!\w|[-\u2212\u2013.,/:]+[0-9])"
)


def extract_number(text: str) -> str | None:
    """The number that the first line of `text` is, in canonical form ("-3"); None when it is anything
    else."""
    match = _WHOLE.fullmatch(_first_line(text))
    if match is None:
        return None
    sign, digits = match.groups()
    value = int(digits)
    return str(value if sign in (None, "+") else -value)


def extract_after_equals(text: str) -> str | None:
    """The number after the last "=" of the first line ("3 ? 5 = 8" gives "8"); None when there is none."""
    _, equals, answer = _first_line(text).rpartition("=")
    return extract_number(answer) if equals else None


def extract_value(text: str) -> float | None:
    """The one number that the first line of `text` gives, whatever stands around it; None when it is not one.

    It is the whole line ("-1,234.5", "\\u2212 3", "40%" is 0.4, "1e3"), or what follows the last "=", or the
    only number of a sentence ("It is 5 apples."). Digits of any script count. Two numbers in a sentence are
    no answer.
    """
    line = _ascii_digits(_first_line(text))
    for part in (line, line.rpartition("=")[2].strip()):
        if match := _VALUE.fullmatch(part):
            sign, digits, exponent, percent = match.groups()
            value = float(digits.replace(",", "")) * 10.0 ** _signed(exponent or "0")
            return math.copysign(value / 100 if percent else value, -1 if sign not in (None, "+") else 1)
    found = _INSIDE.findall(line) if "=" not in line else []
    return _signed(found[0]) if len(found) == 1 else None


def number_match(text: str, target: float, absolute: float = 0.0, relative: float = 0.0) -> Scored:
    """Whether the number in `text` is within `absolute`, or within `relative` times |`target`|, of `target`.

    The sign counts: 3 is no answer to -3 unless the tolerance spans both.
    """
    value = extract_value(text)
    if value is None:
        return Scored(extracted=None, score=0.0, status="unparsed")
    # A value that has no exact double, such as 0.1 + 0.2, is still within a tolerance of zero of itself.
    close = math.isclose(value, target, rel_tol=1e-12, abs_tol=max(absolute, relative * abs(target)))
    return Scored(repr(value), float(close), "ok")


def relaxed_accuracy(text: str, target: str, relative: float = 0.05) -> Scored:
    """ChartQA's: within 5% where both are numbers, otherwise equal but for case (Masry et al. 2022, 5.1).

    Equals `relaxed_correctness` of Qwen-VL and lmms-eval: the whole text is read, a percent sign divides by
    100, and a target of 0 is compared as text.
    """
    given, wanted = _float(text), _float(target)
    status = "ok" if text.strip() else "unparsed"
    if given is not None and wanted:
        return Scored(text, float(abs(given - wanted) / abs(wanted) <= relative), status)
    return Scored(text, float(text.lower() == target.lower()), status)


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def _signed(number: str) -> float:
    negative = number[:1] in ("-", "\u2212", "\u2013")
    return float(number.lstrip("-\u2212\u2013+").replace(",", "")) * (-1 if negative else 1)
