"""Chooses the column and the rows of a log that are the loss of one training."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs import names
from fmcefast.logs.groups import count_values, places_by_value
from fmcefast.logs.names import listed
from fmcefast.logs.rows import Selection, collect, is_same
from fmcefast.logs.table import Broken, Table, number_of

_SAMPLE = 200  # rows that tell which numbers are few
_FEW = 20  # values of a column that tells training from validation
_PROGRESS = re.compile(r"\d\s*/\s*\d|%")
_NO_CURVE = "not an epoch of a training. Export the history of one run."
_STATES = {"finished", "running", "crashed", "failed", "killed", "complete", "completed", "pruned", "terminated"}


@dataclass(frozen=True)
class Choice:
    """The selection of the training loss, that of the validation loss if there is one, and what was decided."""

    training: Selection
    validation: Selection | None
    notes: Sequence[str]


def choose(table: Table, column: str | None, where: Mapping[str, str], title: str, *, any_sign: bool = False) -> Choice:
    """Choose what to read.

    column: of the losses, a tag in a table of tags and values; by default the training loss by its name. where: values
    that rows must have in other columns. title: the name of the log, which may say what a column without a name holds.
    any_sign: the column is a metric.
    Raises InputError when several columns, or the rows of several trainings, could be meant.
    """
    where = {name: str(value) for name, value in where.items()}
    columns, texts = table.columns(), table.text_columns()
    tag, value = _tag_and_value(columns, texts)
    name = value or _loss_column(table, columns, column)
    others = [other for other in columns if other != name]
    places = names.epoch_column(others), names.step_column(others)
    selection = Selection(name, name, *places, any_sign=any_sign)
    _check_where(table, where, [*columns, *texts], selection)
    selection = replace(selection, conditions=where)
    validation_column = names.validation_loss(columns)
    validation = replace(selection, column=validation_column, name=validation_column) if validation_column else None
    if tag is not None and tag in where:
        selection = replace(selection, name=where[tag])
    elif tag is not None:
        tags = list(count_values(table, [tag], selection).get(tag, ()))
        validation_tag = names.validation_loss(tags)
        validation = _with(selection, tag, validation_tag, validation_tag) if validation_tag else None
        name = names.choose_loss(tags, column)
        selection = _with(selection, tag, name, name)
    elif column is None and (table.nameless or names.is_value(name)):
        _refuse_title(title, name)
    training, validation_rows = _split(table, texts, selection)
    _refuse_runs(table, [*columns, *texts], training)
    notes = [f"rows with {key} = {value}" for key, value in training.conditions.items() if key != tag]
    return Choice(training, validation_rows or validation, notes)


def _tag_and_value(columns: Sequence[str], texts: Sequence[str]) -> tuple[str, str] | tuple[None, None]:
    """The columns that say what a value is and that hold it, in a table with a row for every value."""
    value = next(filter(names.is_value, columns), None)
    # A name may also be that of a run.
    tag = min(filter(names.is_tag, [*texts, *columns]), key=names.is_run, default=None)
    return (tag, value) if tag is not None and value is not None else (None, None)


def _loss_column(table: Table, columns: Sequence[str], column: str | None) -> str:
    if column is None and table.usual_column is not None and table.usual_column in columns:
        return table.usual_column
    if column is not None and not table.all_columns_known:
        return column
    return names.choose_loss(columns, column)


def _with(selection: Selection, column: str, value: str, name: str | None = None) -> Selection:
    """The selection with one more condition, and perhaps another name."""
    return replace(selection, conditions={**selection.conditions, column: value}, name=name or selection.name)


def _check_where(table: Table, where: Mapping[str, str], columns: Sequence[str], selection: Selection) -> None:
    for name in where:
        if name not in columns and table.all_columns_known:
            raise InputError(f"`where={name}=...`: there is no column {name!r}. The columns: {listed(columns)}.")
    for name, values in count_values(table, list(where), selection).items():
        if not any(is_same(value, where[name]) for value in values):
            raise InputError(f"no row has `where={name}={where[name]}`. Values of {name}: {listed(list(values))}.")


def _refuse_title(title: str, column: str) -> None:
    """Raise InputError when the name of a log says that its only values are not the training loss."""
    if names.is_accuracy(title) or (names.is_validation(title) and "loss" in names.words(title)):
        raise InputError(
            f"by its name it holds {title}, which is not the training loss. If it is what you want: `column={column}`"
        )


def _split(table: Table, texts: Sequence[str], selection: Selection) -> tuple[Selection, Selection | None]:
    """The rows of training and those of validation, where a column tells them apart; otherwise all rows and None."""
    candidates = [name for name in texts if name not in selection.conditions and not names.is_time(name)]
    for column, counts in count_values(table, candidates, selection).items():
        values = list(counts)
        training, validation = list(filter(names.is_training, values)), list(filter(names.is_validation, values))
        if not validation or len(values) > _FEW:
            continue
        if len(training) == 1:
            first = min(validation, key=lambda value: "test" in names.words(value))
            return _with(selection, column, training[0]), _with(selection, column, first)
        if training or (names.is_split(column) and len(validation) == len(values)):
            which = "several kinds of training rows" if training else "no rows of training"
            raise InputError(
                f"it has {which}: {column} is {listed(values)}. Take one: {_where(column, (training or values)[0])}"
            )
    return selection, None


def _refuse_runs(table: Table, columns: Sequence[str], selection: Selection) -> None:
    """Raise InputError when the selected rows are of several runs, or each of a run of its own."""
    columns = [name for name in columns if name not in selection.conditions and name != selection.column]
    states = [name for name in columns if names.is_state(name)]
    runs = [name for name in columns if names.is_run(name)]
    counts = count_values(table, [*runs, *states], selection)
    if not selection.has_places and any(_STATES.intersection(map(str.lower, counts.get(name, ()))) for name in states):
        raise InputError(
            f"each row is a run of its own ({states[0]}: {listed(list(counts[states[0]]), 3)}), {_NO_CURVE}"
        )
    for name in runs:
        values = counts.get(name)  # None: very many
        if values is not None and len(values) < 2:
            continue
        if values is not None and max(values.values()) > 1:
            raise InputError(
                f"it holds several trainings: {name} is {listed(list(values), 10)}. Take one: "
                f"{_where(name, next(iter(values)))}"
            )
        if not _are_in_order(table, selection):
            shown = f": {listed(list(values), 3)}" if values else ""
            raise InputError(f"each row is a run of its own ({name}{shown}), {_NO_CURVE}")


def _are_in_order(table: Table, selection: Selection) -> bool:
    """Whether every row is later in the training than the one before."""
    rows = collect(table, selection)
    places = rows.steps if rows.epochs is None else rows.epochs
    return places is not None and bool((np.diff(places) > 0).all())


def refuse_mixture(table: Table, selection: Selection, place: str, *, one_after_another: bool) -> None:
    """Raise InputError when a column tells apart rows of the same epochs, as of several models or settings.

    place: the column of the epochs, or of the steps. one_after_another: whether they begin anew, as they may with a
    phase such as finetuning, or with another learning rate.
    """
    columns = [
        name
        for name in (*table.text_columns(), *([] if one_after_another else _few_numbers(table)))
        if name not in (*selection.conditions, selection.column, selection.epoch, selection.step)
        and not names.is_time(name)
        and names.step_column([name]) is None
        and not (one_after_another and names.is_split(name))
    ]
    by_column = places_by_value(table, columns, place, selection) if columns else {}
    for column, places in by_column.items():
        if 2 <= len(places) <= _FEW and _are_curves(list(places.values())) and not _count_rows(list(places)):
            raise InputError(
                f"it holds several curves: {column} is {listed(list(places), 10)}. Take one: "
                f"{_where(column, next(iter(places)))}"
            )


def _few_numbers(table: Table) -> list[str]:
    """The columns with a few different numbers in the first rows."""
    columns = table.columns()
    sample = [cells for _, cells in islice(table.rows(columns), _SAMPLE) if not isinstance(cells, Broken)]
    different = {name: {number_of(cells[i]) for cells in sample} - {None} for i, name in enumerate(columns)}
    return [name for name, numbers in different.items() if 2 <= len(numbers) <= _FEW]


def _count_rows(values: Sequence[str]) -> bool:
    """Whether values count the rows of an epoch: 10/40, 20/40, ... or three numbers or more at equal distances."""
    numbers = [number for value in values if isinstance(number := number_of(value), float)]
    regular = len(numbers) > 2 and np.ptp(np.diff(np.sort(numbers))) < 1e-9 * max(map(abs, numbers))
    return any(map(_PROGRESS.search, values)) or (len(numbers) == len(values) and bool(regular))


def _where(column: str, value: str) -> str:
    return f"`where={shlex.quote(f'{column}={value}')}`"


def _are_curves(places: Sequence[Sequence[float]]) -> bool:
    """Whether each has several places, none of them twice, and all begin at the same one."""
    return all(len(set(each)) == len(each) > 1 for each in places) and len({min(each) for each in places}) == 1
