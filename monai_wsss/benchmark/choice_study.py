# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Which score without masks may choose a model, a cut or a method: rank correlation with Dice, on other data.

A score is chosen by its mean rank correlation on some data sets and reported on another.  It works if every data set
that was left out, one after the other, shows a rank correlation of at least 0.5 with the score that the others chose.
This was written down before any row was measured.  Where none works, the simplest is kept: the AUROC of presence.
Cuts are chosen by the same rule, by the correlations over the cuts of a model; the simplest is a cut of 0.5 for all.

Methods have one score, the agreement with the others that the ensemble of all weak methods keeps, and so nothing is
chosen on other data.  It works if every data set shows a rank correlation of at least 0.5 over the methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from monai_wsss.benchmark.label_scores import CHOICE_SCORES
from monai_wsss.benchmark.method_agreement import agreements
from monai_wsss.benchmark.rows import Row
from monai_wsss.metrics import rank_correlation

__all__ = ["chosen_score", "correlations", "cut_correlations", "format_choice", "format_method_choice", "model_choice"]

TRUTH = "dice_subject"
SIMPLEST = "presence_auroc"
_WORKS = 0.5
_NOTHING = "–"
_KEPT_SCORE = f"`{SIMPLEST}`, and no choice of a method rests on it alone"
_KEPT_CUT = "a cut of 0.5 for all"

Tables = Mapping[str, Sequence[Row]]
Correlations = Mapping[str, float]


def correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Give the rank correlation of each score with Dice over the models of a data set.

    Args:
        rows: of the table ``choice``; rows at cuts are left out.

    Returns:
        Score to correlation, positive where the models that it calls good are good; NaN where there is no order.

    Example:
        >>> rows = [Row(str(n), "", "validation", 0, {"deletion": {"mean": 1 - n}, "dice_subject": {"mean": n}})
        ...         for n in range(4)]
        >>> correlations(rows)["deletion"]
        1.0
    """
    models = _models(rows)
    return _correlations(models)


def cut_correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Give the rank correlation of each score with Dice over the cuts of a model, the mean over the models.

    Args:
        rows: of the table ``choice``; only those at cuts are read.
    """
    own = [_correlations(of_model) for of_model in _by_model(rows)]
    return {name: _mean([each[name] for each in own]) for name in CHOICE_SCORES}


def model_choice(rows: Sequence[Row], score: str) -> tuple[float, float, float] | None:
    """Give the Dice of the model that a score calls best, the mean over all models, and the Dice of the best.

    Args:
        rows: of one data set, or of the cuts of one model.
        score: among :data:`~monai_wsss.benchmark.label_scores.CHOICE_SCORES`.

    Returns:
        Three Dice, that of several models with the same best score as their mean; None where no model has the score.
    """
    sign = CHOICE_SCORES[score]
    known = [(sign * _value(row, score), _value(row, TRUTH)) for row in rows]
    known = [pair for pair in known if all(map(math.isfinite, pair))]
    if not known:
        return None
    highest = max(value for value, _ in known)
    dice = [truth for _, truth in known]
    return float(np.mean([truth for value, truth in known if value == highest])), float(np.mean(dice)), max(dice)


def chosen_score(tables: Mapping[str, Correlations]) -> str:
    """Choose the score with the highest mean correlation over data sets; the simplest where none is known on all.

    Args:
        tables: data set to what :func:`correlations` gives.

    Example:
        >>> chosen_score({"a": {"found": 0.2, "deletion": 0.1}, "b": {"found": 0.0, "deletion": 0.3}})
        'deletion'
    """
    own = {name: [found.get(name, math.nan) for found in tables.values()] for name in CHOICE_SCORES}
    known = {name: float(np.mean(values)) for name, values in own.items() if values and np.isfinite(values).all()}
    return max(known, key=lambda name: (known[name], name == SIMPLEST)) if known else SIMPLEST


def format_choice(tables: Tables, *, phantoms: str) -> dict[str, str]:
    """Write the study as Markdown.

    Args:
        tables: data set to its rows of the table ``choice``; those with too few models for an order are left out.
        phantoms: the name of the data set of phantoms among them.

    Returns:
        Title to text: correlations, scores chosen on phantoms and one data set, one data set left out, verdict, and the
        same of cuts.
    """
    found = {name: correlations(rows) for name, rows in tables.items()}
    found = {name: own for name, own in found.items() if any(map(math.isfinite, own.values()))}
    tables = {name: tables[name] for name in found}
    real = [name for name in tables if name != phantoms]
    left_out = _left_out(found, real)
    of_cuts = {name: cut_correlations(rows) for name, rows in tables.items()}
    of_cuts = {name: own for name, own in of_cuts.items() if any(map(math.isfinite, own.values()))}
    cut = _left_out(of_cuts, [name for name in real if name in of_cuts])
    return {
        "Rank correlation of each score with Dice": _of_scores(found, tables),
        "Chosen on phantoms and one data set, reported on the others": _of_one(found, phantoms, real),
        "Chosen on all data sets but one, reported on that one": _of_left_out(found, left_out, tables),
        "Cuts: rank correlation of each score with Dice over the cuts of one model, mean over models": _of_cuts(tables),
        "Cuts: a score chosen on some data sets, reported on the others": _of_chosen_cuts(
            of_cuts, phantoms, cut, tables
        ),
        "Verdict on models": _verdict({name: found[name][score] for name, score in left_out.items()}, _KEPT_SCORE),
        "Verdict on cuts": _verdict(
            {name: of_cuts[name][score] for name, score in cut.items()}, _KEPT_CUT, "of models"
        ),
    }


def format_method_choice(tables: Tables) -> str:
    """Write as Markdown whether agreement with the other methods follows the Dice of a method.

    Args:
        tables: data set to all rows of its comparison; those whose ensemble has no agreement are left out.

    Returns:
        A table and the verdict; nothing where no data set is left.
    """
    lines, reported = [], {}
    for name, rows in tables.items():
        methods = _methods(rows)
        if methods:
            scores, dice = zip(*methods.values(), strict=True)
            reported[name] = rank_correlation(scores, dice)
            best = max(methods, key=lambda method: methods[method][0])
            values = methods[best][1], _mean(dice), max(dice)
            lines.append([name, str(len(methods)), _shown(reported[name]), best, *(f"{value:.3f}" for value in values)])
    if not lines:
        return ""
    heads = ["data", "methods", "rank correlation", "highest agreement", "its Dice", "mean over methods", "best method"]
    return f"{_table(heads, lines)}\n\n{_verdict_on_methods(reported)}"


def _methods(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Give agreement and Dice of each method and encoder, means over the runs that have both."""
    found = {}
    for name, of_seeds in agreements(rows).items():
        dice = {row.seed: _value(row, TRUTH) for row in rows if row.name == name and not row.column}
        both = [seed for seed in of_seeds if math.isfinite(dice.get(seed, math.nan))]
        if both:
            found[name] = _mean([of_seeds[seed] for seed in both]), _mean([dice[seed] for seed in both])
    return found


def _verdict_on_methods(reported: Correlations) -> str:
    known = {name: value for name, value in reported.items() if math.isfinite(value)}
    if not known:
        return "Nothing can be said: no data set has enough methods for an order."
    told = ", ".join(f"{_shown(value)} on {name}" for name, value in known.items())
    works = "follows" if all(value >= _WORKS for value in known.values()) else "does not follow"
    rule = f"the rule that was fixed beforehand (at least {_WORKS} on each)"
    return f"Agreement {works} the Dice of methods by {rule}: {told}."


def _left_out(found: Mapping[str, Correlations], real: Sequence[str]) -> dict[str, str]:
    """Give for each data set the score that all others choose."""
    return {name: chosen_score({other: found[other] for other in found if other != name}) for name in real}


def _of_scores(found: Mapping[str, Correlations], tables: Tables) -> str:
    heads = [f"{name} ({len(_models(tables[name]))} models)" for name in found]
    lines = [
        [score, *(_shown(own[score]) for own in found.values()), _shown(_mean([own[score] for own in found.values()]))]
        for score in CHOICE_SCORES
    ]
    return _table(["score", *heads, "mean"], lines)


def _of_one(found: Mapping[str, Correlations], phantoms: str, real: Sequence[str]) -> str:
    lines = []
    for one in real:
        score = chosen_score({name: found[name] for name in (phantoms, one) if name in found})
        others = [_NOTHING if name == one else _shown(found[name][score]) for name in real]
        lines.append([f"phantoms and {one}", score, *others])
    return _table(["chosen on", "score", *real], lines)


def _of_left_out(found: Mapping[str, Correlations], left_out: Mapping[str, str], tables: Tables) -> str:
    lines = []
    for name, score in left_out.items():
        for used in dict.fromkeys((score, SIMPLEST)):
            dice = model_choice(_models(tables[name]), used)
            cells = [_NOTHING] * 3 if dice is None else [f"{value:.3f}" for value in dice]
            lines.append([name, used if used == score else f"{used}, the simplest", _shown(found[name][used]), *cells])
    heads = ["left out", "score", "rank correlation", "Dice of the model chosen", "mean over models", "best model"]
    return _table(heads, lines)


def _of_cuts(tables: Tables) -> str:
    found = {name: cut_correlations(rows) for name, rows in tables.items()}
    scores = [score for score in CHOICE_SCORES if any(math.isfinite(own[score]) for own in found.values())]
    lines = []
    for score in scores:
        cells = []
        for name, rows in tables.items():
            cells.append(_cut_cell(found[name], score, rows))
        lines.append([score, *cells])
    for title, pick in (("cut 0.5 for all", _at_half), ("best cut of each model (reads masks)", _at_best)):
        dice = [_mean([pick(of_model) for of_model in _by_model(rows)]) for rows in tables.values()]
        lines.append([title, *(_NOTHING if math.isnan(value) else f"Dice {value:.3f}" for value in dice)])
    return _table(["score", *tables], lines)


def _of_chosen_cuts(
    found: Mapping[str, Correlations], phantoms: str, left_out: Mapping[str, str], tables: Tables
) -> str:
    """Report scores that phantoms and one data set choose on the others, and those that all but one choose on it."""
    lines = []
    for one in left_out:
        score = chosen_score({name: found[name] for name in (phantoms, one) if name in found})
        cells = [_NOTHING if name == one else _cut_cell(found[name], score, tables[name]) for name in left_out]
        lines.append([f"phantoms and {one}", score, *cells])
    for one, score in left_out.items():
        cells = [_cut_cell(found[name], score, tables[name]) if name == one else _NOTHING for name in left_out]
        lines.append([f"all but {one}", score, *cells])
    half = [_mean([_at_half(of_model) for of_model in _by_model(tables[name])]) for name in left_out]
    lines.append(
        [_NOTHING, "cut 0.5, the simplest", *(f"Dice {dice:.3f}" if math.isfinite(dice) else _NOTHING for dice in half)]
    )
    return _table(["chosen on", "score", *left_out], lines)


def _cut_cell(found: Correlations, score: str, rows: Sequence[Row]) -> str:
    """Give the rank correlation of a score over the cuts, and the mean Dice of the cuts that it calls best."""
    parts = [model_choice(of_model, score) for of_model in _by_model(rows)]
    known = [part[0] for part in parts if part is not None]
    return f"{_shown(found[score])}, Dice {np.mean(known):.3f}" if known else _NOTHING


def _verdict(reported: Correlations, kept: str, rule: str = "that was fixed beforehand") -> str:
    told = ", ".join(f"{_shown(value)} on {name}" for name, value in reported.items())
    asked = f"the rule {rule} (at least {_WORKS} on each left out)"
    if reported and all(value >= _WORKS for value in reported.values()):
        return f"It works by {asked}: {told}."
    return f"None works by {asked}: {told}. The simplest is kept, {kept}."


def _at_half(rows: Sequence[Row]) -> float:
    return _mean([_value(row, TRUTH) for row in rows if row.column == "cut 0.5"])


def _at_best(rows: Sequence[Row]) -> float:
    known = [value for value in (_value(row, TRUTH) for row in rows) if math.isfinite(value)]
    return max(known) if known else math.nan


def _models(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.column]


def _by_model(rows: Sequence[Row]) -> list[list[Row]]:
    """Give the rows at cuts, model by model."""
    models: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        if row.column:
            models.setdefault((row.name, row.seed), []).append(row)
    return list(models.values())


def _correlations(rows: Sequence[Row]) -> dict[str, float]:
    truths = [_value(row, TRUTH) for row in rows]
    return {
        name: sign * rank_correlation([_value(row, name) for row in rows], truths)
        for name, sign in CHOICE_SCORES.items()
    }


def _value(row: Row, metric: str) -> float:
    return float(row.metrics.get(metric, {}).get("mean", math.nan))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _shown(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else _NOTHING


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)])
