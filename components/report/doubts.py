"""What a reader should doubt of the shown model: facts of the report that often mean something else than they seem."""

from __future__ import annotations

from collections.abc import Sequence

from edgeline.report.formats import Format
from edgeline.report.schema import CandidateReport, Report, TrainingReport

#: How much better than on the validation split a share, such as accuracy, may be on the training split.
_FAR_APART = 0.1
#: How many times as large as on the training split an error may be on the validation split.
_TIMES_APART = 1.5
#: Fraction of the examples on which a candidate should decide as the baseline does.
_AGREEMENT = 0.9
#: How many times the baseline's time a candidate may take.
_SLOWER = 1.5


def of(report: Report, style: Format) -> list[str]:
    """Returns what there is to doubt, a sentence or two each.

    Args:
      report: all of it.
      style: how numbers are written.
    """
    shown = report.chosen
    said = [
        _apart(report, shown),
        _fine_budget(report, style),
        _nothing_quantized(report, style),
    ]
    if shown is not None:
        said += [_other_answers(shown, style), _slow(report, shown, style), _longer_trained(report, shown, style)]
    return [text for text in said if text is not None]


def _apart(report: Report, shown: CandidateReport | None) -> str | None:
    """Says that a training ended far apart on its own examples and on others: the first of those behind the model."""
    name = shown.name if shown else report.baseline.name
    for training in report.training:
        if name in training.of and (text := _training_apart(training, report.budget.metric, report.budget.direction)):
            return text
    return None


def _training_apart(training: TrainingReport, metric: str, direction: str) -> str | None:
    if not _last(training, metric):
        metric, direction = "loss", "min"
    train, validation = _last(training, metric), _last(training, f"val_{metric}")
    if train is None or validation is None:
        return None
    if direction == "max":
        is_apart = train - validation > _FAR_APART and max(abs(train), abs(validation)) <= 1
    else:
        is_apart = 0 < train < validation / _TIMES_APART
    if not is_apart:
        return None
    return (
        f"{training.step} ended with {metric} {train:.4g} on its own examples and {validation:.4g} on the validation "
        f"split: it knows these examples by heart, or the statistics of its BatchNormalization lag behind a short "
        f"training. Train longer, on more data, or with more regularization."
    )


def _last(training: TrainingReport, name: str) -> float | None:
    """Returns a value after the last epoch; None where it is not known."""
    return next(iter(training.history.get(name, ())[-1:]), None)


def _fine_budget(report: Report, style: Format) -> str | None:
    """Says that one example moves an accuracy by more than the budget allows."""
    examples = report.dataset.examples
    for judged in report.budget.judged:
        guess = report.baseline.chance.get(judged.metric)
        is_share = guess is not None and guess.answer is not None
        if is_share and judged.max_drop and examples and judged.max_drop * examples < 1 - 1e-9:
            return (
                f"The budget is finer than the data: one of {style.count(examples)} examples is {1 / examples:.4g} of "
                f"{judged.metric}, more than the drop of {judged.max_drop:g} that it allows; more examples would tell."
            )
    return None


def _nothing_quantized(report: Report, style: Format) -> str | None:
    """Says which dynamic_range files are as large as their float32 ones: nothing is quantized in them."""
    same = []
    for candidate in report.candidates:
        steps = candidate.recipe
        if not steps or steps[-1].config.get("scheme") != "dynamic_range" or candidate.bytes is None:
            continue
        twins = (c for c in report.candidates if c.recipe[:-1] == steps[:-1] and _scheme(c) == "float32")
        # without a float32 candidate of the same steps: pruning and clustering leave the size of the file as it is
        twin = next(twins, report.baseline)
        if twin.bytes is not None and candidate.bytes >= twin.bytes:
            same.append(candidate.name)
    if not same:
        return None
    is_large = "is as large as its float32 file" if len(same) == 1 else "are as large as their float32 files"
    return (
        f"{_listed(same)} {is_large}: dynamic-range quantization leaves weights of fewer than 1,024 numbers, and "
        f"operators that it does not know, as they are. Choose int8 or float16 instead."
    )


def _scheme(candidate: CandidateReport) -> str:
    return str(candidate.recipe[-1].config.get("scheme", "")) if candidate.recipe else "float32"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _other_answers(shown: CandidateReport, style: Format) -> str | None:
    agreement = shown.comparison.agreement if shown.comparison else None
    if agreement is None or agreement >= _AGREEMENT:
        return None
    return (
        f"{shown.name} decides as the baseline does on {style.percent(agreement)} of the examples only: what it has "
        f"right in all may be as much, but it is right and wrong elsewhere."
    )


def _slow(report: Report, shown: CandidateReport, style: Format) -> str | None:
    own, reference = (model.latency_ms.p50 if model.latency_ms else None for model in (shown, report.baseline))
    if not own or not reference or own <= _SLOWER * reference:
        return None
    return (
        f"{shown.name} takes {style.times(own / reference)} the baseline's time on this machine ({style.duration(own)} "
        f"beside {style.duration(reference)}): the operators of its number type may be faster on the target; measure "
        f"there."
    )


def _longer_trained(report: Report, shown: CandidateReport, style: Format) -> str | None:
    """Says that a model that is better than the baseline was trained for more epochs, too."""
    behind = [training for training in report.training if shown.name in training.of]
    own = sum(training.epochs for training in behind)
    reference = sum(training.epochs for training in behind if report.baseline.name in training.of)
    if shown.drop is None or shown.drop >= 0 or own <= reference or not reference:
        return None
    return (
        f"{shown.name} is better than the baseline by {style.metric(-shown.drop)} of {report.budget.metric}, but was "
        f"trained for {own} epochs, the baseline for {reference}: train the baseline as long before you take that for "
        f"what compression does."
    )
