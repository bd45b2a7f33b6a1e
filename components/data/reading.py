"""Reading Examples artifacts: one parser for every step that sees data, and the input pipeline of training."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from edgeline.errors import UserError
from edgeline.model_module.hooks import ModelModule

#: A split whose preprocessed tensors are larger than this is streamed from disk in every epoch instead of kept.
IN_MEMORY_BYTES = 4 * 2**30

_PARSE_BATCH = 1024

#: Bytes of inputs that a batch of `fitting_batch` has at most: there are some batches at once, parsed ahead, and the
#: model's activations are of their size.
_FITTING_BYTES = 8 * 2**20

#: Threads that read and parse, and batches that may be ready ahead. Fixed, with autotuning off: closing an iterator
#: sometimes waits for the tuner's thread, which sleeps up to as long again as the whole pass took.
_THREADS = os.cpu_count() or 1
_AHEAD = 4
_OPTIONS = tf.data.Options()
_OPTIONS.autotune.enabled = False

#: Where in its graph TensorFlow met an error: of no use to who has to mend the data.
_TENSORFLOW_NOISE = re.compile(
    r"\{\{function_node .*?\}\} *|Error in user-defined function .*? with iterator: \S+: *| *\[Op:.*"
)


class ExampleParser:
    """Turns serialized `tf.train.Example`s into what the model and the metrics want, by the module's own hooks.

    Calling it traces; `compiled` is the same as one tf.function for use batch by batch outside tf.data (an eager call
    of parse_example and a few ops is 8 times slower).
    """

    def __init__(self, module: ModelModule):
        self._module = module
        self._spec = module.feature_spec()
        self.compiled = tf.function(self.__call__, input_signature=[tf.TensorSpec([None], tf.string)])

    def __call__(self, serialized: tf.Tensor) -> tuple[Any, Any, tf.Tensor | None]:
        """Returns (inputs, label, weight) of a batch.

        Args:
          serialized: shape [batch], dtype string.

        Returns:
          The two results of the module's `preprocess`, and `example_weight`'s (None without that hook); all batched.
        """
        inputs, label, weight, _ = self.with_features(serialized, [])
        return inputs, label, weight

    def with_features(
        self, serialized: tf.Tensor, names: list[str]
    ) -> tuple[Any, Any, tf.Tensor | None, dict[str, tf.Tensor]]:
        """Returns (inputs, label, weight) of a batch, and some of its features as they were before `preprocess`."""
        features = tf.io.parse_example(serialized, self._spec)
        kept = {name: features[name] for name in names}
        inputs, label = self._module.preprocess(dict(features))
        return inputs, label, self._module.example_weight(features), kept

    def inputs(self, serialized: tf.Tensor, read: Callable[[tf.Tensor, set[str]], dict[str, Any]] | None = None) -> Any:
        """Returns the inputs of a batch of examples in which only what these depend on need be: no label.

        Args:
          serialized: shape [batch], dtype string.
          read: from these and the names of some features to these features; None: `tf.io.parse_example`.
        """
        used = self._used_features()
        if read is None:
            features = tf.io.parse_example(serialized, {name: self._spec[name] for name in used})
        else:
            features = read(serialized, used)
        blank = {
            name: feature._replace(default_value=tf.zeros(feature.shape, feature.dtype))
            if isinstance(feature, tf.io.FixedLenFeature)
            else feature
            for name, feature in self._spec.items()
            if name not in used
        }
        nothing = tf.io.parse_example(tf.fill(tf.shape(serialized), ""), blank) if blank else {}
        return self._module.preprocess({**nothing, **features})[0]

    def _used_features(self) -> set[str]:
        """Returns the names of the features that the inputs depend on, or that `preprocess` asserts something of."""
        sources: dict[int, str] = {}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def trace(serialized: tf.Tensor) -> Any:
            features = tf.io.parse_example(serialized, self._spec)
            for name, feature in features.items():
                sources.update((id(tensor), name) for tensor in tf.nest.flatten(feature, expand_composites=True))
            return self._module.preprocess(dict(features))[0]

        graph = trace.get_concrete_function().graph
        open_tensors = [*graph.outputs, *(t for op in graph.control_outputs for t in op.inputs)]
        seen: set[int] = set()
        used: set[str] = set()
        while open_tensors:
            tensor = open_tensors.pop()
            if id(tensor) in sources:
                used.add(sources[id(tensor)])
            elif id(tensor) not in seen:
                seen.add(id(tensor))
                open_tensors += tensor.op.inputs
                open_tensors += (t for op in tensor.op.control_inputs for t in op.inputs)
        return used


def split_files(examples_uri: str, split: str) -> list[str]:
    """Returns the paths of a split's shards in an Examples artifact, sorted.

    Raises:
      UserError: the split has no files.
    """
    folder = Path(examples_uri) / f"Split-{split}"
    files = sorted(str(path) for path in folder.glob("*") if path.is_file())
    if not files:
        present = sorted(p.name.removeprefix("Split-") for p in Path(examples_uri).glob("Split-*"))
        raise UserError(
            f"the examples have no files in split {split!r} ({folder}); splits there: {', '.join(present) or 'none'}. "
            f"Edgeline needs train, validation and eval"
        )
    return files


def read_serialized(files: list[str], parallel: int = 1) -> tf.data.Dataset:
    """Returns serialized records of GZIP TFRecord files, in an order that depends on the files alone."""
    names = tf.data.Dataset.from_tensor_slices(files)
    if parallel == 1:
        return names.flat_map(lambda name: tf.data.TFRecordDataset(name, "GZIP"))
    return names.interleave(
        lambda name: tf.data.TFRecordDataset(name, "GZIP"),
        cycle_length=parallel,
        block_length=64,
        num_parallel_calls=min(parallel, _THREADS),
        deterministic=True,
    )


def parsed_batches(files: list[str], parser: ExampleParser, batch_size: int) -> tf.data.Dataset:
    """Returns batches of (inputs, label, weight), parsed a batch at a time, in an order that depends on the files."""
    return mapped_batches(files, parser, batch_size)


def mapped_batches(files: list[str], parse: Callable[[tf.Tensor], Any], batch_size: int) -> tf.data.Dataset:
    """Returns what `parse` makes of each batch of serialized records, in an order that depends on the files."""
    records = read_serialized(files, min(_THREADS, len(files)))
    return records.batch(batch_size).map(parse, _THREADS).prefetch(_AHEAD).with_options(_OPTIONS)


def fitting_batch(inputs: Any, most: int) -> int:
    """Returns how many examples to take at once, so that they take little memory: a power of two from 1, or `most`.

    Args:
      inputs: of a batch, as `preprocess` returns them; shapes and dtypes suffice.
      most: examples in a batch however small they are.
    """
    size = 0
    for tensor in tf.nest.flatten(inputs):
        # where a size varies, a hundred stands for it
        each = [100] if tensor.shape.rank is None else [100 if n is None else n for n in tensor.shape.as_list()[1:]]
        size += tensor.dtype.size * math.prod(each)
    fitting = _FITTING_BYTES // max(size, 1)
    return min(most, 2 ** max(fitting.bit_length() - 1, 0))


def records_until_damage(file: str, note: Callable[[tf.errors.OpError], None]) -> Iterator[bytes]:
    """Yields the serialized records of one file up to where it is corrupt or truncated.

    Args:
      file: path of a GZIP TFRecord file.
      note: is told the error, if there is one; nothing of the file can be read after it.
    """
    records = iter(tf.data.TFRecordDataset(file, "GZIP").as_numpy_iterator())
    while True:
        try:
            yield next(records)
        except StopIteration:
            return
        except tf.errors.DataLossError as error:
            note(error)
            return


def explain(error: tf.errors.OpError, files: list[str], module: ModelModule) -> UserError:
    """Says what is wrong with the data, or with the module's view of it, after reading or parsing failed.

    Args:
      error: what TensorFlow raised.
      files: the shards that were being read.
      module: whose hooks parsed them.
    """
    damaged = isinstance(error, tf.errors.DataLossError)
    if damaged and len(files) > 1:
        files = [file for file in files if not _is_whole(file)][:1] or files
    where = files[0] if len(files) == 1 else f"one of {len(files)} shards in {Path(files[0]).parent}"
    first_line = _TENSORFLOW_NOISE.sub("", str(error.message).strip().splitlines()[0])
    if damaged:
        return UserError(f"corrupt or truncated TFRecord: {where}: {first_line}")
    return UserError(
        f"the examples in {where} do not fit the model module {module.source.reference}: {first_line}. "
        f"Its feature_spec() asks for {_describe_spec(module.feature_spec())}"
    )


def _is_whole(file: str) -> bool:
    try:
        for _ in read_serialized([file]).batch(_PARSE_BATCH):
            pass
    except tf.errors.DataLossError:
        return False
    return True


def _describe_spec(spec: dict[str, Any]) -> str:
    parts = []
    for name, feature in sorted(spec.items()):
        dtype = tf.as_dtype(feature.dtype).name
        shape = list(feature.shape) if isinstance(feature, tf.io.FixedLenFeature) else type(feature).__name__
        parts.append(f"{name}: {dtype} {shape}")
    return "{" + ", ".join(parts) + "}"


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A split as training wants it.

    Attributes:
      after: returns (inputs, label) or (inputs, label, weight) batches: all epochs one after the other but so many
        first ones; of a split that is not for training, one pass.
      steps_per_epoch: batches in one epoch.
      examples: examples in one epoch.
    """

    after: Callable[[int], tf.data.Dataset]
    steps_per_epoch: int
    examples: int

    @property
    def dataset(self) -> tf.data.Dataset:
        """All batches."""
        return self.after(0)


def training_data(files: list[str], module: ModelModule, *, batch_size: int, epochs: int, seed: int) -> TrainingData:
    """Opens a split for training: shuffled anew in every epoch, by (seed, epoch) alone.

    A split that fits is parsed and preprocessed once and kept in memory; each epoch is then a permutation of it, which
    costs what `fit` on arrays costs. A larger one is streamed, shuffled by shard and within windows of 16 batches.

    Raises:
      UserError: the shards cannot be read, or do not fit the module.
    """
    kept = _load(files, module)
    augment = module.has("augment")

    def finish(epoch: tf.Tensor, index: tf.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs, label, *weight = batch
        if augment:
            draw = tf.stack([tf.cast(epoch * 1_000_003 + seed, tf.int32), tf.cast(index, tf.int32)])
            inputs, label = module.augment(inputs, label, draw)
        return (inputs, label, *weight)

    if isinstance(kept, int):
        examples = kept

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            draw = tf.stack([seed, tf.cast(epoch, tf.int32)])
            names = tf.random.experimental.stateless_shuffle(tf.constant(files), seed=draw)
            records = tf.data.Dataset.from_tensor_slices(names).interleave(
                lambda name: tf.data.TFRecordDataset(name, "GZIP"),
                cycle_length=min(8, len(files)),
                num_parallel_calls=min(8, len(files), _THREADS),
                deterministic=True,
            )

            def mix(index: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
                # Dataset.shuffle takes no seed that changes with the epoch: it would repeat the same order
                own = tf.random.experimental.stateless_fold_in(draw, tf.cast(index, tf.int32))
                return tf.random.experimental.stateless_shuffle(window, seed=own)

            mixed = records.batch(16 * batch_size).enumerate().map(mix).rebatch(batch_size)
            parsed = mixed.map(ExampleParser(module), _THREADS).map(_for_keras)
            return parsed.enumerate().map(lambda index, batch: finish(epoch, index, batch), _THREADS)

    else:
        examples = len(tf.nest.flatten(kept)[0])

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(examples, dtype=tf.int64), seed=[seed, tf.cast(epoch, tf.int32)]
            )

            def batch(index: tf.Tensor) -> tuple[Any, ...]:
                rows = order[index * batch_size : (index + 1) * batch_size]
                return finish(epoch, index, _gather(kept, rows))

            return tf.data.Dataset.range(-(-examples // batch_size)).map(batch, _THREADS)

    def after(done: int) -> tf.data.Dataset:
        return tf.data.Dataset.range(done, epochs).flat_map(one_epoch).prefetch(_AHEAD).with_options(_OPTIONS)

    return TrainingData(after, -(-examples // batch_size), examples)


def evaluation_data(files: list[str], module: ModelModule, *, batch_size: int) -> TrainingData:
    """Opens a split for Keras' `evaluate`: in file order, once per pass.

    Raises:
      UserError: the shards cannot be read, or do not fit the module.
    """
    kept = _load(files, module)
    if isinstance(kept, int):
        dataset = parsed_batches(files, ExampleParser(module), batch_size).map(_for_keras)
        examples = kept
    else:
        examples = len(tf.nest.flatten(kept)[0])
        dataset = tf.data.Dataset.range(-(-examples // batch_size)).map(
            lambda index: tf.nest.map_structure(lambda t: t[index * batch_size : (index + 1) * batch_size], kept)
        )
    dataset = dataset.prefetch(_AHEAD).with_options(_OPTIONS)
    return TrainingData(lambda done: dataset, -(-examples // batch_size), examples)


def _for_keras(inputs: Any, label: Any, weight: Any) -> tuple[Any, ...]:
    return (inputs, label) if weight is None else (inputs, label, weight)


def _gather(kept: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), kept)


def _load(files: list[str], module: ModelModule) -> Any:
    """Returns a whole split as tensors, as Keras takes a batch, or its number of examples if it is too large."""
    batches = parsed_batches(files, ExampleParser(module), _PARSE_BATCH).map(_for_keras)
    parts: list[list[np.ndarray]] = []
    size = examples = 0
    try:
        for batch in batches:
            leaves = tf.nest.flatten(batch)
            examples += int(leaves[0].shape[0])
            size += sum(leaf.numpy().nbytes if isinstance(leaf, tf.Tensor) else IN_MEMORY_BYTES + 1 for leaf in leaves)
            if size > IN_MEMORY_BYTES:
                parts.clear()
            else:
                parts.append([leaf.numpy() for leaf in leaves])
    except tf.errors.OpError as error:
        raise explain(error, files, module) from error
    if examples == 0:
        raise UserError(f"the examples in {Path(files[0]).parent} are empty: 0 records in {len(files)} shards")
    if size > IN_MEMORY_BYTES:
        return examples
    columns = [tf.constant(np.concatenate(column)) for column in zip(*parts, strict=True)]
    return tf.nest.pack_sequence_as(batches.element_spec, columns)


def named_inputs(inputs: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the inputs of a batch as arrays by the model's input names.

    Args:
      inputs: what `preprocess` returned: one tensor, a list or tuple in the model's order, or a dict by input name.
      names: the model's input names in its order.

    Raises:
      UserError: their number or names differ from the model's.
    """
    if isinstance(inputs, dict):
        if set(inputs) != set(names):
            raise UserError(f"preprocess returns inputs {sorted(inputs)}, but the model's inputs are {sorted(names)}")
        return {name: np.asarray(inputs[name]) for name in names}
    values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if len(values) != len(names):
        raise UserError(f"preprocess returns {len(values)} inputs, but the model has {len(names)}: {', '.join(names)}")
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def check_fits_model(parser: ExampleParser, model: Any, reference: str) -> None:
    """Checks before any training that what `preprocess` returns is what the model takes.

    Raises:
      UserError: input names, shapes or dtypes differ; says which, expected and received.
    """
    inputs, _, _ = parser.compiled.get_concrete_function().structured_outputs
    names = list(model.input_names)
    leaves = [inputs[n] for n in names if n in inputs] if isinstance(inputs, dict) else tf.nest.flatten(inputs)
    if isinstance(inputs, dict) and set(inputs) != set(names):
        raise UserError(
            f"preprocess of {reference} returns inputs {sorted(inputs)}, but build_model's inputs are {sorted(names)}"
        )
    if len(leaves) != len(names):
        raise UserError(
            f"preprocess of {reference} returns {len(leaves)} inputs, but build_model has {len(names)}: "
            f"{', '.join(names)}"
        )
    for name, leaf, expected in zip(names, leaves, model.inputs, strict=True):
        if not leaf.shape.is_compatible_with(expected.shape) or leaf.dtype != expected.dtype:
            raise UserError(
                f"preprocess of {reference} returns input {name!r} of shape {leaf.shape} {leaf.dtype.name}, but "
                f"build_model takes {expected.shape} {expected.dtype.name}"
            )


def fingerprint(examples_uri: str) -> str:
    """Returns a digest over the names, sizes and checksums of all shards of an Examples artifact.

    The checksums are the CRC-32s that GZIP keeps in a file's last 8 bytes, so that no data is read.
    """
    total = hashlib.sha256()
    for path in sorted(Path(examples_uri).rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(size - 8, 0))
                total.update(f"{path.relative_to(examples_uri)}\0{size}\0".encode() + file.read())
    return total.hexdigest()
