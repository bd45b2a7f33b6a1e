"""Slices: the parts of the eval split by the values of some features, or by label."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from edgeline.errors import UserError, did_you_mean
from edgeline.model_module.hooks import ModelModule

#: The feature that stands for the label, whatever the examples call it.
LABEL = "label"

#: More values than this are no slices any more: each costs memory in every worker, and a row in the report.
MOST_SLICES = 1000

#: A slice: (feature, value) of each of its features. The empty one is all examples.
Key = tuple[tuple[str, str | int], ...]


class Slicer:
    """Says which slices the examples of a batch are in.

    Args:
      module: whose `slice_features` names features, or tuples of features for their crosses.
      classes: number of classes where the label is one, so that it slices too; else None.

    Raises:
      UserError: a feature that `feature_spec` does not have, or whose values cannot be told apart (floats, lists).
    """

    def __init__(self, module: ModelModule, classes: int | None):
        crosses = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in module.slice_features()]
        if classes is not None and classes <= MOST_SLICES and (LABEL,) not in crosses:
            crosses.append((LABEL,))
        self.crosses: tuple[tuple[str, ...], ...] = tuple(dict.fromkeys(crosses))
        self.features = sorted({name for cross in crosses for name in cross if name != LABEL})
        if classes is None and any(LABEL in cross for cross in crosses):
            raise UserError(
                f"slice_features() of {module.source.reference} names {LABEL!r}, but the model is no classifier with "
                f"one output"
            )
        _check_features(self.features, module)

    def of(self, features: dict[str, np.ndarray], labels: np.ndarray | None) -> list[tuple[np.ndarray, list[Key]]]:
        """Deals the examples of a batch into slices, once per cross.

        Args:
          features: of `self.features`, by name, shape [examples] or [examples, 1].
          labels: class numbers, shape [examples]; None where the model is no classifier.

        Returns:
          For each cross the number of each example's slice, shape [examples], and the slices by that number.
        """
        columns = {name: _distinct(np.asarray(values).reshape(len(values))) for name, values in features.items()}
        if labels is not None:
            columns[LABEL] = _distinct(labels)
        return [_cross(cross, [columns[name] for name in cross]) for cross in self.crosses]


def _check_features(names: Iterable[str], module: ModelModule) -> None:
    spec, where = module.feature_spec(), f"slice_features() of {module.source.reference}"
    for name in names:
        if name not in spec:
            hint = did_you_mean(name, [*spec, LABEL])
            raise UserError(f"{where} names {name!r}{hint}; feature_spec() has {', '.join(sorted(spec))}")
        feature = spec[name]
        scalar = isinstance(feature, tf.io.FixedLenFeature) and list(feature.shape) in ([], [1])
        if not scalar or tf.as_dtype(feature.dtype) not in (tf.string, tf.int64):
            raise UserError(
                f"{where} names {name!r}, which must be a FixedLenFeature([], tf.string or tf.int64) to slice by; "
                f"received {feature!r}"
            )


def _distinct(values: np.ndarray) -> tuple[list[str | int], np.ndarray]:
    distinct, numbers = np.unique(values, return_inverse=True)
    return [
        v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else int(v) for v in distinct.tolist()
    ], numbers


def _cross(names: tuple[str, ...], columns: list[tuple[list[str | int], np.ndarray]]) -> tuple[np.ndarray, list[Key]]:
    sizes = [len(values) for values, _ in columns]
    codes, numbers = np.unique(np.ravel_multi_index([n for _, n in columns], sizes), return_inverse=True)
    if len(codes) > MOST_SLICES:
        raise too_many(names)
    places = np.unravel_index(codes, sizes)
    keys = [
        tuple((name, values[p]) for name, (values, _), p in zip(names, columns, place, strict=True))
        for place in zip(*places, strict=True)
    ]
    return numbers, keys


def too_many(names: Iterable[str]) -> UserError:
    """Returns the error of a feature that is no good to slice by."""
    return UserError(
        f"slice feature {','.join(names)} has more than {MOST_SLICES:,} values; slice by one with fewer, e.g. a group"
    )


def spell(key: Key) -> str:
    """Returns a slice as the budget writes it, e.g. `camera=front,label=7`."""
    return ",".join(f"{name}={value}" for name, value in key)


def check_asked(limited: Iterable[str], module: ModelModule, labelled: bool = True) -> None:
    """Checks before any training that the examples can be sliced, and that a budget's slices will be made.

    Args:
      limited: keys of `max_slice_drops`.
      module: whose `slice_features` says which are.
      labelled: whether the label slices too.

    Raises:
      UserError: a slice is none of them, or a feature is missing or cannot be sliced by; says which there are.
    """
    entries = [(entry,) if isinstance(entry, str) else entry for entry in module.slice_features()]
    _check_features(sorted({name for entry in entries for name in entry} - {LABEL}), module)
    crosses = [*entries, (LABEL,)] if labelled else entries
    for key in limited:
        names = sorted(part.split("=")[0].strip() for part in key.split(","))
        if names not in [sorted(cross) for cross in crosses]:
            known = "; ".join(",".join(cross) for cross in dict.fromkeys(crosses)) or "none"
            raise UserError(
                f"the budget limits the drop in slices by {key!r}, but the slices are by: {known}; name one of them, "
                f"or add it to slice_features() of {module.source.reference}"
            )
