"""What the pass over the training split found: whether it spoils a training, and what the manifest tells of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf

from edgeline.data.reading import ExampleParser
from edgeline.errors import UserError, did_you_mean
from edgeline.model_module.hooks import ModelModule
from edgeline.representative_dataset import selection
from edgeline.representative_dataset.config import LABEL, Sample
from edgeline.representative_dataset.selection import Choice, Drawn, Pool

#: More values than this are no strata any more.
MOST_STRATA = 1000


@dataclasses.dataclass(frozen=True)
class EvalFilter:
    """Tells which examples are in the eval split too. It misses none, and takes another for one by chance alone.

    Attributes:
      fingerprints: of its examples, int64 in [0, selection.KEYS), sorted, each once: 8 bytes per example.
      examples: how many it has.
    """

    fingerprints: np.ndarray
    examples: int

    @property
    def false_positive_rate(self) -> float:
        """How likely an example that is not in the eval split is taken for one of it."""
        return len(self.fingerprints) / selection.KEYS

    def holds(self, fingerprints: np.ndarray) -> np.ndarray:
        """Returns for each fingerprint whether it is one of the eval split's, shape [examples]."""
        if not len(self.fingerprints):
            return np.zeros(len(fingerprints), bool)
        # isin would sort the whole filter for every batch
        places = np.searchsorted(self.fingerprints, fingerprints).clip(max=len(self.fingerprints) - 1)
        return self.fingerprints[places] == fingerprints


@dataclasses.dataclass
class Summary:
    """What is known of some of the examples; two of them add up.

    Attributes:
      examples: how many.
      labels: examples by label, for scalar integer labels; empty for others.
      strata: examples by stratum, for the `stratified` strategy.
      not_finite: examples by the name of the input that holds NaN or infinite values.
      rejected: examples with such an input; never drawn.
      in_eval: other examples that are in the eval split; never drawn.
      drawn: what `selection.lowest` keeps of the rest.
      pool: what `selection.pooled` keeps of the rest, for the `diverse` strategy.
    """

    examples: int = 0
    labels: Counter[int] = dataclasses.field(default_factory=Counter)
    strata: Counter[str] = dataclasses.field(default_factory=Counter)
    not_finite: Counter[str] = dataclasses.field(default_factory=Counter)
    rejected: int = 0
    in_eval: int = 0
    drawn: list[Drawn] = dataclasses.field(default_factory=list)
    pool: Pool | None = None


def add_up(parts: list[Summary], samples: int) -> Summary:
    """Returns the Summary of all examples of some Summaries; `samples` as for `selection.lowest`."""
    pools = [part.pool for part in parts if part.pool is not None]
    return Summary(
        sum(part.examples for part in parts),
        sum((part.labels for part in parts), Counter()),
        sum((part.strata for part in parts), Counter()),
        sum((part.not_finite for part in parts), Counter()),
        sum(part.rejected for part in parts),
        sum(part.in_eval for part in parts),
        selection.lowest(samples, (item for part in parts for item in part.drawn)),
        selection.pooled(pools, selection.pool_size(samples)) if pools else None,
    )


def check_strata(config: Sample, module: ModelModule, parser: ExampleParser) -> None:
    """Checks before the pass that a stratified draw has something to go by.

    Args:
      config: what is asked.
      module: the user's hooks.
      parser: of that module.

    Raises:
      UserError: `by` is no feature, or one whose values cannot be told apart, or the label is no class index.
    """
    if config.strategy != "stratified":
        return
    where, spec = module.source.reference, module.feature_spec()
    if config.by == LABEL:
        label = parser.compiled.get_concrete_function().structured_outputs[1]
        if not isinstance(label, tf.Tensor) or not label.dtype.is_integer or label.shape[1:].num_elements() != 1:
            raise UserError(
                f"calibration samples cannot be stratified by label: preprocess of {where} returns {label!r}, and one "
                f"integer per example is needed; stratify by a feature, or draw uniform samples"
            )
        return
    if config.by not in spec:
        hint = did_you_mean(config.by, [*spec, LABEL])
        raise UserError(
            f"calibration samples cannot be stratified by {config.by!r}{hint}: feature_spec() of {where} has "
            f"{', '.join(sorted(spec))}; or by {LABEL!r}"
        )
    feature = spec[config.by]
    scalar = isinstance(feature, tf.io.FixedLenFeature) and list(feature.shape) in ([], [1])
    if not scalar or tf.as_dtype(feature.dtype) not in (tf.string, tf.int64):
        raise UserError(
            f"calibration samples cannot be stratified by {config.by!r}, which must be a FixedLenFeature([], tf.string "
            f"or tf.int64) in feature_spec() of {where}; received {feature!r}"
        )


def too_many_strata(by: str) -> UserError:
    """Returns the error of a stratum that is no good to draw by."""
    return UserError(f"{by!r} has more than {MOST_STRATA:,} values; stratify the calibration samples by a coarser one")


def check(summary: Summary, classes: int | None, reference: str, max_bad_fraction: float = 0.0) -> None:
    """Checks what the pass found, before any training.

    Args:
      summary: of the whole split.
      classes: how many the model tells apart; None where labels are no class indices.
      reference: of the model module, for the message.
      max_bad_fraction: share of the examples that may have NaN or infinite inputs, at least 0 and below 1.

    Raises:
      UserError: no examples, too many NaN or infinite inputs, labels outside [0, classes), or none left to draw.
    """
    if summary.examples == 0:
        raise UserError("the training split is empty: 0 examples")
    if summary.rejected > max_bad_fraction * summary.examples:
        not_finite = ", ".join(f"{count:,} in input {name!r}" for name, count in sorted(summary.not_finite.items()))
        allowed = f"; at most {max_bad_fraction:.3%} may be" if max_bad_fraction else ""
        raise UserError(
            f"examples with NaN or infinite values after preprocess of {reference}: {not_finite} "
            f"(of {summary.examples:,} "
            f"training examples{allowed}); clean the data, or handle them in preprocess"
        )
    if classes is not None and summary.labels:
        outside = sorted(label for label in summary.labels if not 0 <= label < classes)
        if outside:
            count = sum(summary.labels[label] for label in outside)
            raise UserError(
                f"{count:,} training examples have labels outside [0, {classes}), the classes of the model of "
                f"{reference}: {', '.join(map(str, outside[:10]))}; correct the data, or the model's number of outputs"
            )
    if summary.rejected + summary.in_eval == summary.examples:
        raise UserError(
            f"no training example can be a calibration sample: of {summary.examples:,}, {summary.in_eval:,} are in the "
            f"eval split too and {summary.rejected:,} hold NaN or infinite values; split the data into disjoint parts"
        )


def class_count(module: ModelModule, model: Any) -> int | None:
    """Returns how many classes the labels may name: the module's class names, else the width of a sparse classifier.

    Args:
      module: the user's hooks.
      model: built by it.

    Returns:
      None where labels are no class indices: several outputs, or a loss that is not a sparse cross-entropy.
    """
    if module.class_names():
        return len(module.class_names())
    module.compile_model(model)
    # a name, a function or an object
    loss = model.loss if isinstance(model.loss, str) else getattr(model.loss, "__name__", type(model.loss).__name__)
    sparse = loss.lower().replace("_", "") == "sparsecategoricalcrossentropy"
    return int(model.outputs[0].shape[-1]) if sparse and len(model.outputs) == 1 else None


def stack(drawn: list[Drawn]) -> dict[str, np.ndarray]:
    """Returns the drawn examples by input name, shape [samples, ...].

    Raises:
      UserError: they do not all have the same shape.
    """
    try:
        return {name: np.stack([item.inputs[name] for item in drawn]) for name in drawn[0].inputs}
    except ValueError as error:
        raise UserError(f"preprocess returns examples of different shapes in one batch position: {error}") from None


def stability(samples: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns by input how alike the ranges of two disjoint halves of the samples are: 1 the same, 0 disjoint.

    That is the intersection of the ranges by their union, for every second sample and the others. The samples are in
    the order of a hash, so the halves are drawn at random; ranges that still differ need more samples.

    Args:
      samples: by input name, shape [samples, ...].

    Returns:
      For the numeric inputs; empty where there is one sample.
    """
    scores = {}
    for name, values in samples.items():
        if values.dtype.kind not in "fiu" or len(values) < 2:
            continue
        ends = [(float(half.min()), float(half.max())) for half in (values[::2], values[1::2])]
        (low, other_low), (high, other_high) = zip(*ends, strict=True)
        union = max(high, other_high) - min(low, other_low)
        common = min(high, other_high) - max(low, other_low)
        scores[name] = max(common, 0.0) / union if union else 1.0
    return scores


def about(
    config: Sample,
    summary: Summary,
    samples: dict[str, np.ndarray],
    known: EvalFilter,
    choice: Choice | None,
    source: str,
) -> dict[str, Any]:
    """Returns what the manifest says beside what it says of the samples' tensors.

    Args:
      config: what was asked.
      summary: of the whole split; `drawn` are the samples.
      samples: by input name, shape [samples, ...], in the order of `drawn`.
      known: of the eval split.
      choice: of the `diverse` strategy, else None.
      source: digest of the examples.
    """
    scores = stability(samples)
    taken = Counter(item.stratum for item in summary.drawn)
    in_eval = np.isin([item.key for item in summary.drawn], selection.keys(known.fingerprints, config.seed))
    manifest: dict[str, Any] = {
        "strategy": config.strategy,
        "seed": config.seed,
        "asked": config.parameters(),
        "examples": summary.examples,
        "source": source,
        "digests": [item.digest for item in summary.drawn],
        "label_histogram": _by_label(summary.labels),
        "sample_label_histogram": _by_label(Counter(i.label for i in summary.drawn if i.label is not None)),
        "left_out": {
            "not_finite": summary.rejected,
            "in_eval": summary.in_eval,
            "duplicates": sum(item.copies - 1 for item in summary.drawn),
        },
        "eval_split": {
            "examples": known.examples,
            "distinct": len(known.fingerprints),
            "false_positive_rate": known.false_positive_rate,
            "samples_in_it": int(in_eval.sum()),
        },
        "stability": {"score": sum(scores.values()) / len(scores) if scores else None, "inputs": scores},
    }
    if config.strategy == "stratified":
        manifest["strata"] = {
            name: {"examples": count, "samples": taken[name]} for name, count in sorted(summary.strata.items())
        }
    if choice is not None:
        numeric = [name for name, values in samples.items() if values.dtype.kind in "fiu"]
        manifest["left_out"]["outliers"] = choice.left_out
        manifest["pool"] = choice.pool
        manifest["winsorised"] = {
            name: {"range": choice.ranges[:, i].tolist(), "below": int(below), "above": int(above)}
            for i, (name, below, above) in enumerate(zip(numeric, *choice.outliers, strict=True))
        }
    return manifest


def _by_label(counts: Counter[int]) -> dict[str, int]:
    return {str(label): count for label, count in sorted(counts.items())}
