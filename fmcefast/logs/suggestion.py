"""Suggests a regular expression for the losses in a text log."""

import re
from collections import Counter
from collections.abc import Iterator

from fmcefast.logs.names import is_training, is_validation, loss_rank
from fmcefast.logs.table import number_of
from fmcefast.logs.text import plain

_NUMBER = r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?"
_TAKEN = r"(?P<loss>[-+.\w]+)"  # nan and inf too
_LABEL = re.compile(
    # loss/train/total is Composer's, train_loss_epoch Lightning's.
    r"(?:([A-Za-z]{1,20})([ _/-]))?([\w./]{0,60}loss(?:es)?(?:/\w{1,20}|_epoch|_step){0,3})"
    rf"((?: is)?[^\w,;]{{1,4}}){_NUMBER}",
    re.IGNORECASE,
)
# Of timm and Swin, Train: 3 [0/1251] and Train: [3/300][0/1251]; of mmengine, Epoch(train) [3][100/300].
_COUNTER = re.compile(
    r"(epoch|step|iteration|iter|train(?=: +(?:\d+ \[|\[\d+/)))(s?(?:\(train\))?\W{0,10})\d+", re.IGNORECASE
)
_DARKNET = rf"{_TAKEN} avg"
_TERM = 9  # a rank for losses of a single term


def suggest_pattern(text: str) -> str | None:
    """A regular expression with a group `loss`, and one `epoch` or `step` where there is one, that fits the text.

    It holds no quotes and no backticks, so that it can be put between them. None when no line names a loss.
    """
    lines = list(map(plain, text.splitlines()))
    labels = Counter(label for line in lines for label in _labels(line))
    if not labels:
        return _DARKNET if _takes_numbers(_DARKNET, lines) else None
    name, mark = min(labels, key=lambda label: (_rank(label[0]), -labels[label]))
    loss = _literal(name) + _literal(mark) + _TAKEN
    if any(re.search(r"[\w/.]$", line[: match.start()]) for line, match in _found(loss, lines)):
        loss = rf"(?<![\w/.]){loss}"  # not the end of another name
    for other in sorted({label.removesuffix(name) for label, _ in labels if label.endswith(f" {name}")}):
        loss = f"(?<!{re.escape(other)}){loss}"  # of a test, often: Avg loss
    before, after = _counter(loss, lines)
    start, between = _without_validation(
        [line[: match.start("loss")] for line, match in _found(f"{before}.*?{loss}", lines)]
    )
    pattern = f"{start}{before}{between}{loss}" if before else f"{start}{loss}{after or _ending(loss, lines)}"
    return pattern if _takes_numbers(pattern, lines) else None


def _counter(loss: str, lines: list[str]) -> tuple[str, str]:
    """Expressions for the epoch or the step before the loss, or after it; empty when few lines have one."""
    found = list(_found(loss, lines))
    for number, texts in (
        (r"\d+", [line[: match.start()] for line, match in found]),
        (r"[\d.]+", [line[match.end() :] for line, match in found]),
    ):
        counters = Counter(match.groups() for text in texts if (match := _COUNTER.search(text)))
        if counters:
            ((name, mark), count) = counters.most_common(1)[0]
            if 3 * count >= len(found):
                group = "epoch" if name.lower() in ("epoch", "train") else "step"
                counter = f"{name}{_literal(mark)}(?P<{group}>{number})"
                return (counter, "") if number == r"\d+" else ("", f".*?{counter}")
    return "", ""


def _ending(loss: str, lines: list[str]) -> str:
    """An expression for the validation loss that only the last line of an epoch has, as Keras prints them."""
    after = [line[match.end() :] for line, match in _found(loss, lines)]
    endings = [match.group() for text in after if (match := re.search(r"val\w{0,20}loss", text, re.IGNORECASE))]
    return f".*?{endings[0]}" if 0 < len(endings) < len(after) else ""


def _labels(line: str) -> Iterator[tuple[str, str]]:
    """What stands before the losses of a line that are not of validation: a name, and the mark after it."""
    for word, blank, label, mark in _LABEL.findall(line):
        joined = blank in "_/" or is_training(word) or is_validation(word) or loss_rank(f"{word}_loss")
        name = f"{word}{blank}{label}" if joined else label
        if not is_validation(name):
            yield name, mark


def _rank(name: str) -> int:
    rank = loss_rank(name)
    return _TERM if rank is None else rank


def _without_validation(before: list[str]) -> tuple[str, str]:
    """What a pattern begins with, and what lies between its parts, so that lines of validation do not fit it."""
    said = [{word for word in re.findall("[A-Za-z]+", text) if is_validation(word)} for text in before]
    words = set().union(*said)
    if not words or all(said):
        return "", ".*?"
    others = rf"(?:(?!{'|'.join(sorted(words))}).)*?"
    return f"^{others}", others


def _found(pattern: str, lines: list[str]) -> Iterator[tuple[str, re.Match[str]]]:
    for line in lines:
        if match := re.search(pattern, line):
            yield line, match


def _takes_numbers(pattern: str, lines: list[str]) -> bool:
    return any(isinstance(number_of(match["loss"]), float) for _, match in _found(pattern, lines))


def _literal(text: str) -> str:
    """An expression for a text; blanks vary, and any character may stand for a quote."""
    blank = r"\s+" if text.isspace() else r"\s*"
    parts = re.findall(r"\s+|['\"`]|.", text)
    return "".join(blank if part.isspace() else "." if part in "'\"`" else re.escape(part) for part in parts)
