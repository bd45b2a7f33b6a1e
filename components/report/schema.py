"""What report.json holds, as frozen dataclasses: each field with its unit or range, and with what None (null) means.

`edgeline.report.report_file` reads and writes them; nothing else knows a key. A metric is one of those that the model
module compiles, or `loss`. A drop is how much worse a metric is than that of another model, in the metric's own unit:
positive where it is worse, whether more or less of the metric is better. An interval is the lower and the upper end of
a 95% confidence interval. Everything is of the eval split, unless it says otherwise. A number that is no number (the
loss of a model that diverged) is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from edgeline.budget import LIMITS
from edgeline.report import dataclass_json
from edgeline.report.dataclass_json import Amount, Count, field

SCHEMA_VERSION = 3
"""Of the layout that is described here. It is raised where a key moves or changes its meaning, not where one is new."""

Metrics = Mapping[str, float | None]
"""Values by metric."""

Interval = tuple[float | None, float | None]
"""A lower and an upper end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The examples that all models were evaluated on.

    Attributes:
      split: of the Examples artifact, `eval`.
      examples: that were evaluated.
      fingerprint: of the Examples artifact, hexadecimal; None: not known.
      spans: names of the folders of the window of spans that the examples were read from; None: from no spans.
      label_names: of the classes, by class number; None: they have no names.
      bad_records: that could not be read and took no part; None: not known.
      slice_features: names of the features that the examples are sliced by, joined where several are crossed.
      training_examples: of the train split, by class number as text; empty: not known, or the labels are no classes.
    """

    split: str
    examples: Count
    fingerprint: str | None = None
    spans: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    bad_records: Count | None = None
    slice_features: tuple[tuple[str, ...], ...] = ()
    training_examples: Mapping[str, Count] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedMetric:
    """A metric that the budget judges.

    Attributes:
      metric: its name.
      direction: `max` where more of the metric is better, `min` where less is.
      max_drop: largest drop from the baseline, at least 0; None: any.
    """

    metric: str
    direction: Literal["max", "min"]
    max_drop: float | None = None

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return -1 if self.direction == "min" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """What a candidate may cost and lose: the budget that the candidates were judged by.

    Attributes:
      metric: that is judged; of several, the first, by which the candidates are ranked.
      direction: `max` where more of the metric is better, `min` where less is.
      max_drop: largest drop from the baseline, at least 0; None: any.
      more_metrics: that are judged as well.
      metric_is_default: whether the budget named no metric, so that `metric` is accuracy where that is compiled, else
        the first compiled metric, else the loss.
      drop_bound: what must be within max_drop: `point`, the measured drop, or `upper`, the upper end of its interval.
      value_threshold: the worst value that `metric` may have; None: any.
      max_deployed_drop: largest drop of each metric from the deployed model, at least 0; None: any.
      max_slice_drops: largest drops from the baseline within slices, at least 0, by what they hold for: the name of a
        feature (then for each of its values), several joined by commas, or one value, as in `camera=front,label=7`;
        after the name of a metric and a colon, as in `boxes_mae:label`, for that metric instead of all.
      min_slice_examples: slices with fewer examples are not judged; None: not known.
      objective: what the selected candidate has the least of: `zlib_bytes`, `bytes` or `latency_ms`.
      target: the kind of hardware that has to be able to run it, such as `cpu`; None: not known.
      limits: the most that a candidate may cost, above 0, by the budget's field that says so; None: any.
    """

    metric: str
    direction: Literal["max", "min"]
    objective: str
    max_drop: float | None = None
    more_metrics: tuple[JudgedMetric, ...] = ()
    metric_is_default: bool = False
    drop_bound: Literal["point", "upper"] = "point"
    value_threshold: float | None = None
    max_deployed_drop: float | None = None
    max_slice_drops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_slice_examples: Count | None = None
    target: str | None = None
    limits: Mapping[str, Amount | None] = field(default_factory=dict, prefix="max_")

    @property
    def judged(self) -> tuple[JudgedMetric, ...]:
        """All metrics that are judged, the first ranks the candidates."""
        first = JudgedMetric(metric=self.metric, direction=self.direction, max_drop=self.max_drop)
        return (first, *self.more_metrics)

    def named(self, metric: str) -> JudgedMetric:
        """Returns one of the metrics that are judged."""
        return next(judged for judged in self.judged if judged.metric == metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContractReport:
    """The contract that a candidate has to keep: what apps rely on in the model whose place it takes.

    Attributes:
      of: what that model is called; `deployed` is the deployed model.
      contract: its inputs, outputs, labels and target, as `latest.json` in the pushed folder has them.
    """

    of: str
    contract: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """The time of one inference, as DeviceCost.one_thread has it.

    Attributes:
      p50: median in ms; None: not known.
      p90: 90th percentile in ms; None: not known.
    """

    p50: Amount | None = None
    p90: Amount | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of single inferences (batch 1) in one setting; None: not known.

    Attributes:
      p50: median in ms.
      p90: 90th percentile in ms.
      p99: 99th percentile in ms.
      runs: how many were timed.
      noise: interquartile range of the medians of consecutive blocks of runs, as a fraction of p50; at least 0.
      threads: how many were used, of `all_threads`.
    """

    p50: Amount | None = None
    p90: Amount | None = None
    p99: Amount | None = None
    runs: Count | None = None
    noise: Amount | None = None
    threads: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCost:
    """What a `.tflite` file costs on the machine that evaluated it; None: not measured.

    Attributes:
      one_thread: times with one thread and XNNPACK, as a phone runs it.
      all_threads: times with one thread per usable core and XNNPACK.
      without_xnnpack: times with one thread of LiteRT's built-in kernels.
      cold_start_ms: time to load the file and run it for the first time in a fresh process, in ms.
      peak_rss_bytes: how far that raised the peak of the process' resident memory, in bytes.
    """

    one_thread: Timing | None = None
    all_threads: Timing | None = None
    without_xnnpack: Timing | None = None
    cold_start_ms: Amount | None = None
    peak_rss_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassReport:
    """How well one class is told from the others; fractions from 0 to 1.

    Attributes:
      precision: of the predictions of the class, those that are right; None: it was never predicted.
      recall: of the examples of the class, those that are recognised; None: it has no example.
      examples: of the class.
    """

    precision: float | None = None
    recall: float | None = None
    examples: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """The predictions whose probability lies in one of 15 equal parts of 0 to 1.

    Attributes:
      confidence: mean probability of the predicted classes, from 0 to 1.
      accuracy: of these predictions, those that are right, from 0 to 1.
      count: how many there are, at least 1.
    """

    confidence: float
    accuracy: float
    count: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """What a classifier gets right and confuses, and how sure it is of it; every example counts once.

    Attributes:
      output: name of the model's output; None: not known.
      classes: how many there are, at least 2.
      confusion: examples by label (row) and prediction (column); None: there are more than 200 classes.
      top_k: fraction of the examples whose label is among the k likeliest classes, by k; from 0 to 1.
      per_class: of each class, by class number.
      log_loss: mean of -log of the label's probability, at least 0; None: not known.
      ece: expected calibration error (15 bins), from 0 to 1; None: not known.
      bins: that hold predictions, by rising confidence.
    """

    output: str | None = None
    classes: Count
    confusion: tuple[tuple[Count, ...], ...] | None = None
    top_k: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_class: tuple[ClassReport, ...] = ()
    log_loss: float | None = None
    ece: float | None = None
    bins: tuple[CalibrationBin, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipCounts:
    """How many examples a model decides otherwise than the baseline, where one of both is right.

    Attributes:
      right_to_wrong: examples that the baseline has right and the model wrong.
      wrong_to_right: the other way round.
    """

    right_to_wrong: Count
    wrong_to_right: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """How far an output is from the baseline's, in the output's own unit.

    Attributes:
      max_abs_error: largest difference, at least 0; None: not known.
      mean_abs_error: mean difference, at least 0; None: not known.
      sqnr_db: signal to noise in dB, the baseline's output being the signal; None: they do not differ.
    """

    max_abs_error: float | None = None
    mean_abs_error: float | None = None
    sqnr_db: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """A model beside the baseline, example by example.

    Attributes:
      examples: that were compared; None: not known.
      agreement: fraction of them with the same predicted class, from 0 to 1; None: no classifier.
      flips: examples that only one of both has right; None: no classifier.
      outputs: by the output's name, where the shapes agree.
    """

    examples: Count | None = None
    agreement: float | None = None
    flips: FlipCounts | None = None
    outputs: Mapping[str, OutputDifference] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceReport:
    """What a model does on the examples of a slice.

    Attributes:
      features: the values that its examples have, by the feature's name.
      examples: that are in it.
      metrics: of these examples.
      drop: of the budget's first metric, from the baseline's in the same slice; None: of the baseline itself, or not
        known.
      more_drops: likewise of its other metrics, by name.
    """

    features: Mapping[str, str | int | float | bool]
    examples: Count
    metrics: Metrics
    drop: float | None = None
    more_drops: Metrics = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipReport:
    """An example that either the baseline or the model has right, and the other wrong.

    Attributes:
      kind: `right_to_wrong` (the baseline has it right) or `wrong_to_right`.
      label: class number.
      baseline: class number that the baseline predicts.
      candidate: class number that the model predicts.
      image: what goes in, as a data URI of a small PNG; None: it is no image.
      features: those of its features that are sliced by.
    """

    kind: str
    label: int
    baseline: int
    candidate: int
    image: str | None = None
    features: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionReport:
    """How far the numbers of an output are from their labels; errors are absolute, in the labels' own unit.

    Attributes:
      numbers: of an example, at least 1.
      r2: 1 minus squared errors over squared deviations of the labels, at most 1: the mean over the numbers of an
        example that are not the same in all labels; None: all are.
      mean_abs_error: mean error, at least 0; None: not known.
      rmse: root of the mean squared error, at least 0; None: not known.
      error_quantiles: by the fraction of all errors that are no larger: `0.5`, `0.9`, `0.99`, to 0.5%, and `1`.
      labels: of up to 200 examples, the numbers of each.
      predicted: of the same examples, likewise.
    """

    numbers: Count
    r2: float | None = None
    mean_abs_error: float | None = None
    rmse: float | None = None
    error_quantiles: Metrics = dataclasses.field(default_factory=dict)
    labels: tuple[tuple[float, ...], ...] = ()
    predicted: tuple[tuple[float, ...], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagReport:
    """How well one tag of a multi-label output is told; fractions from 0 to 1, at a probability of 0.5.

    Attributes:
      precision: of the examples that are given the tag, those that have it; None: none is given it.
      recall: of the examples that have the tag, those that are given it; None: none has it.
      f1: harmonic mean of both; None: none has it or is given it.
      examples: that have it.
      predicted: examples that are given it.
    """

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    examples: Count
    predicted: Count = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class IoUReport:
    """How well the pixels of one class are told.

    Attributes:
      iou: pixels that have the class and are taken for it, over those that have it or are taken for it, from 0 to 1;
        None: there are none.
      pixels: that have it.
    """

    iou: float | None = None
    pixels: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskReport:
    """The classes of an example's pixels, each a data URI of a small PNG with a colour for each class.

    Attributes:
      differing: fraction of the pixels that the model decides otherwise than the baseline, from 0 to 1.
      image: what goes in; None: it is no image.
      label: the truth.
      baseline: what the baseline predicts.
      candidate: what the model predicts.
    """

    differing: float
    image: str | None = None
    label: str
    baseline: str
    candidate: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """How well the classes of pixels are told.

    Attributes:
      per_class: of each class, by class number.
      masks: of up to four examples, those where the model differs most from the baseline.
    """

    per_class: tuple[IoUReport, ...]
    masks: tuple[MaskReport, ...] = ()

    @property
    def mean_iou(self) -> float | None:
        """The mean over the classes that have one; None where none has."""
        known = [each.iou for each in self.per_class if each.iou is not None]
        return sum(known) / len(known) if known else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputReport:
    """What a model does at one of its outputs: one of the following, the others are None.

    Attributes:
      output: its name.
      classification: of a class for each example.
      regression: of numbers.
      segmentation: of a class for each pixel.
      tags: of any number of tags for each example, by the tag's number.
    """

    output: str
    classification: ClassificationReport | None = None
    regression: RegressionReport | None = None
    segmentation: SegmentationReport | None = None
    tags: tuple[TagReport, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChanceReport:
    """What answering the same whatever goes in would have of a metric, beside the model.

    Attributes:
      guess: what is always answered: the `commonest class` of the examples, or the `mean` of their labels.
      answer: number of that class; None: of the mean.
      value: of the metric, of that guess.
      margin: how much better than that a model may be by luck, at least 0: 1.96 standard errors; None: not known, as
        there is but one example.
      beaten: whether the model is better by more than that.
    """

    guess: Literal["commonest class", "mean"]
    answer: Count | None = None
    value: float
    margin: Amount | None = None
    beaten: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelReport:
    """A model: its file, and what it does.

    Attributes:
      name: of the recipe; None: not known.
      metrics: of the eval split; None: it was not evaluated.
      undefined: why a metric has no value (is None in `metrics`), by its name.
      chance: of the metrics that the budget judges, what a model that ignores its inputs would have, by name; of an
        accuracy of one label per example, and of mean squared and absolute errors without weights and masks alone.
      bytes: size of the `.tflite` file; None: there is none, or not known.
      zlib_bytes: the same after zlib at level 9, about what a download transfers; None likewise.
      sha256: of the file, hexadecimal; None likewise.
      classification: what it does class by class; None: it is no classifier with one output, or was not evaluated.
      outputs: what it does at each output that is not described by `classification`: where there are several outputs,
        or one that predicts numbers, tags, or the classes of pixels.
      comparison: with the baseline; None: of the baseline itself, or it was not evaluated.
      slices: what it does in each slice, by feature and value.
      flipped: up to six examples of each kind that the baseline and this model decide differently.
    """

    name: str | None
    metrics: Metrics | None = None
    undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chance: Mapping[str, ChanceReport] = dataclasses.field(default_factory=dict)
    bytes: Count | None = None
    zlib_bytes: Count | None = None
    sha256: str | None = None
    classification: ClassificationReport | None = None
    outputs: tuple[OutputReport, ...] = ()
    comparison: ComparisonReport | None = None
    slices: tuple[SliceReport, ...] = ()
    flipped: tuple[FlipReport, ...] = ()

    def value(self, metric: str) -> float | None:
        """Returns the value of a metric; None where it is not known."""
        return (self.metrics or {}).get(metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredReport(ModelReport):
    """A model whose cost was measured.

    Attributes:
      latency_ms: of one inference with one thread; None: not measured.
      device: all that was measured; None: not measured.
    """

    latency_ms: Latency | None = None
    device: DeviceCost | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasReport:
    """The Keras model that the baseline was converted from, evaluated by Keras.

    Attributes:
      metrics: of the eval split.
      max_abs_difference: largest difference of any output from the baseline's, in its own unit; None: not known.
    """

    metrics: Metrics = dataclasses.field(default_factory=dict)
    max_abs_difference: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineReport(MeasuredReport):
    """The float32 model that all candidates are compared with.

    Attributes:
      name: `baseline`; no candidate has it.
      keras: the Keras model that it was made from; None: not asked for.
    """

    name: Literal["baseline"] = "baseline"
    keras: KerasReport | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployedReport(ModelReport):
    """The model that was deployed while the candidates were evaluated.

    Attributes:
      name: of the recipe that it was made by; None: not known.
      path: of the `.tflite` file, a path or a URI; None: not known.
      version: name of its folder below the pushed one; None: not known.
      pushed_at: UTC, ISO 8601; None: not known.
      failure: why it could not be evaluated; None: it was.
    """

    name: str | None = None
    path: str | None = None
    version: str | None = None
    pushed_at: str | None = None
    failure: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeStep:
    """A step that a candidate was made by.

    Attributes:
      step: name of the component, such as `Pruner`.
      config: what it was asked, every field of its config.
    """

    step: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepQuality:
    """The Keras model after a step that trains.

    Attributes:
      step: name of the component.
      metrics: of the split; None: not known.
      split: `validation`.
    """

    step: str
    metrics: Metrics | None = None
    split: str = "validation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderStep:
    """What a step left of the weights.

    Attributes:
      step: name of the component.
      zlib_bytes: of the float32 weights after the step, by zlib at level 9; of the TFLiteExporter, of its file; None:
        not known.
    """

    step: str
    zlib_bytes: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderRung:
    """A quantization scheme that `auto` tried.

    Attributes:
      rung: the scheme and what of it stays float, in words.
      scheme: `int8`, `int16x8`, `dynamic_range` or `float16`; None: not known.
      keep_float: names of the layers that stay float.
      drop: from the float model, on the validation split; None: it could not be made or run.
      bytes: of the `.tflite` file; None likewise.
      zlib_bytes: the same at zlib level 9; None likewise.
      held: whether the drop is allowed.
      error: why it could not be made or run; None: it could.
    """

    rung: str
    scheme: str | None = None
    keep_float: tuple[str, ...] = ()
    drop: float | None = None
    bytes: Count | None = None
    zlib_bytes: Count | None = None
    held: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What int8 does to one layer alone, at its worst operation, on calibration samples; None: not known.

    Attributes:
      layer: its name.
      sqnr_db: signal to quantization noise of all values, in dB.
      channel_sqnr_db: mean over the channels of each one's own, in dB.
      cosine: of float and int8 values, -1 to 1.
      max_error: largest absolute difference.
      range: lowest and highest value that int8 can hold there, by the calibration.
      histogram: how many float values lie in each of 24 equal parts of that range.
      drop: from the float model, when this layer alone is int8, on the validation split; None: not tried.
      drop_when_float: from the float model, when all but this layer is int8, likewise; None: not tried.
    """

    layer: str
    sqnr_db: float | None = None
    channel_sqnr_db: float | None = None
    cosine: float | None = None
    max_error: float | None = None
    range: Interval | None = None
    histogram: tuple[Count, ...] = ()
    drop: float | None = None
    drop_when_float: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What was done to a layer with weights.

    Attributes:
      name: of the Keras layer.
      type: class of the Keras layer; None: not known.
      parameters: numbers in its weights; None: not known.
      sparsity: fraction of zeros in its largest weight, from 0 to 1; None: not known.
      unique_values: distinct values in that weight; None: more than 65,536, or not known.
      note: what was done to it, or why it was left alone.
      more: what else a step says of it, by the name of the fact.
    """

    name: str
    type: str | None = None
    parameters: Count | None = None
    sparsity: float | None = None
    unique_values: Count | None = None
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict, prefix="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureReport:
    """Why a candidate failed.

    Attributes:
      step: name of the component that could not do its work, or `an earlier step`.
      error: what it said.
    """

    step: str
    error: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropReport:
    """What a candidate loses by a metric of the budget.

    Attributes:
      drop: from the baseline; None: it was not evaluated.
      drop_interval: of the drop; None: not known.
      chosen_drop_interval: of the drop, of the selected candidate, wide enough to hold for whichever of all that were
        evaluated is selected; None: of another one, or not known.
      deployed_drop: from the deployed model; None: there is none to compare with.
      deployed_drop_interval: of that drop; None: not known.
    """

    drop: float | None = None
    drop_interval: Interval | None = None
    chosen_drop_interval: Interval | None = None
    deployed_drop: float | None = None
    deployed_drop_interval: Interval | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateReport(MeasuredReport):
    """A candidate beside the baseline, and the verdict.

    Attributes:
      name: of the recipe.
      recipe: its steps; empty: none changed the model, or an earlier step failed and left nothing to read.
      drop: of the budget's first metric, from the baseline; None: it was not evaluated.
      drop_interval: of the drop; None: not known.
      chosen_drop_interval: of the drop, of the selected candidate, wide enough to hold for whichever of all that were
        evaluated is selected; None: of another one, or not known.
      deployed_drop: of the budget's first metric, from the deployed model; None: there is none to compare with.
      deployed_drop_interval: of that drop; None: not known.
      more_drops: by the budget's other metrics, by name.
      ratio: zlib_bytes of the baseline divided by its own, above 0; None: it was not evaluated.
      sparsity: fraction of zeros in the weights of the file, from 0 to 1; None: there is no file.
      ladder: what each step left of the weights, in the order of the steps.
      sensitivity: what int8 does to each layer, the worst first; None: not analysed.
      ladder_walked: the schemes that `auto` tried, the one that holds last; None: not asked for.
      blessed: whether it meets the budget.
      reasons: why it does not, in words; empty: it does.
      misses: what these reasons are about, each once: `target` (it cannot run there), `contract` (it does not fit in
        where the old model was), `chance` (it would be the first that is pushed, and is no better than a guess), and
        `budget` for all else.
      pareto: whether no other candidate is better in zlib_bytes and the budget's first metric both.
      failure: why it failed; None: it did not.
      steps: the Keras model's quality after each step that trains.
      layers: what was done to each layer.
    """

    name: str
    recipe: tuple[RecipeStep, ...] = ()
    drop: float | None = None
    drop_interval: Interval | None = None
    chosen_drop_interval: Interval | None = None
    deployed_drop: float | None = None
    deployed_drop_interval: Interval | None = None
    more_drops: Mapping[str, DropReport] = dataclasses.field(default_factory=dict)
    ratio: float | None = None
    sparsity: float | None = None
    ladder: tuple[LadderStep, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] | None = None
    ladder_walked: tuple[LadderRung, ...] | None = None
    blessed: bool = False
    reasons: tuple[str, ...] = ()
    misses: tuple[Literal["target", "contract", "chance", "budget"], ...] = ()
    pareto: bool = False
    failure: FailureReport | None = None
    steps: tuple[StepQuality, ...] = ()
    layers: tuple[LayerReport, ...] = ()

    def lost(self, metric: str) -> DropReport:
        """Returns what it loses by one of the budget's metrics; the first is the one that is none of `more_drops`."""
        names = [own.name for own in dataclasses.fields(DropReport)]
        return self.more_drops.get(metric) or DropReport(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseReport:
    """A phase of a training.

    Attributes:
      name: by the model module.
      epochs: that were trained.
    """

    name: str
    epochs: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStartReport:
    """A training that was to begin from the weights of an earlier model.

    Attributes:
      source: path of the Keras model; None: not known.
      sha256: of that file, hexadecimal; None: it could not be read.
      taken: whether it began there.
      note: the same in words, with the reason where it did not.
    """

    source: str | None = field(default=None, key="from")
    sha256: str | None = None
    taken: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """A step that trained.

    Attributes:
      step: name of the component.
      of: names of the models that it led to, `baseline` among them.
      config: what it was asked, every field of its config; None: not known.
      history: values after each epoch by metric, of the validation split by names that begin with `val_`; a value is
        None where a phase has no such metric.
      phases: in their order; empty: it was all one.
      warm_start: what it began from; None: from scratch, as asked.
    """

    step: str
    of: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    history: Mapping[str, tuple[float | None, ...]] = dataclasses.field(default_factory=dict)
    phases: tuple[PhaseReport, ...] = ()
    warm_start: WarmStartReport | None = None

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return max(map(len, self.history.values()), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node of the pipeline.

    Attributes:
      id: of the node, such as `Pruner.prune80`.
      state: `done`, `cached`, `failed` or `skipped`.
      seconds: that it took; None: it did not run.
      upstream: ids of the nodes that it waits for.
    """

    id: str
    state: str
    seconds: float | None = None
    upstream: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport:
    """The run that published the report.

    Attributes:
      seconds: that all of it took; None: not known.
      nodes: in the order in which they ran.
    """

    seconds: float | None = None
    nodes: tuple[NodeReport, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineReport:
    """What the measured times depend on; None: not known.

    Attributes:
      cpu: model of the processor.
      cores: how many the machine has.
      system: the operating system and its version.
    """

    cpu: str | None = None
    cores: Count | None = None
    system: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What an Evaluator found: each candidate's quality and cost beside the baseline's, and which one is selected.

    Attributes:
      schema_version: of this layout.
      created: UTC, ISO 8601.
      pipeline: its name.
      module: reference of the model module.
      module_digest: SHA-256 of the module's code, hexadecimal; None: not known.
      dataset: what the models were evaluated on.
      budget: what the candidates were judged by.
      like: the contract that a candidate has to keep; None: any will do.
      baseline: the float32 model.
      deployed: the deployed model; None: there was none, or nothing was to be compared with it.
      candidates: in the order of the recipes.
      training: the steps that trained, each once.
      run: the run that published this report; None: of an Evaluator's artifact, which several runs may share.
      selected: name of the selected candidate; None: none meets the budget.
      chosen_among: how many different files were evaluated that the selected one could have been; None: none is
        selected, or not known.
      closest: name of the candidate that misses the budget by the least; None: one is selected, or all failed.
      versions: of Edgeline and of the packages under it, by their names.
      machine: that the candidates were measured on.
    """

    schema_version: Literal[3] = 3
    created: str
    pipeline: str
    module: str
    module_digest: str | None = None
    dataset: DatasetReport
    budget: BudgetReport
    like: ContractReport | None = None
    baseline: BaselineReport
    deployed: DeployedReport | None = None
    candidates: tuple[CandidateReport, ...]
    training: tuple[TrainingReport, ...] = ()
    run: RunReport | None = None
    selected: str | None = None
    chosen_among: Count | None = None
    closest: str | None = None
    versions: Mapping[str, str]
    machine: MachineReport

    def candidate(self, name: str | None) -> CandidateReport | None:
        """Returns the candidate of a name; None where there is none."""
        return next((candidate for candidate in self.candidates if candidate.name == name), None)

    @property
    def chosen(self) -> CandidateReport | None:
        """The selected candidate, or else the closest; None where there is neither."""
        return self.candidate(self.selected or self.closest)


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of report.json."""
    schema = dataclass_json.json_schema(Report)
    budget = schema["$defs"][BudgetReport.__name__]
    [(_, limit)] = budget.pop("patternProperties").items()
    for name, known in LIMITS.items():
        description = f"Largest {known.words} of a candidate, in {known.unit}, above 0; null: any."
        budget["properties"][name] = {**limit, "description": description}
        budget["required"].append(name)
    return {**schema, "title": "report.json"}
