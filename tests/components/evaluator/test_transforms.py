from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from edgeline import data, keras_io
from edgeline.evaluator import transforms
from edgeline.evaluator.metrics import CompiledMetrics, State
from edgeline.passport import Passport
from edgeline.tflite_exporter import conversion


@pytest.fixture(scope="module")
def models(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small model as float32, one with other output names, and one whose outputs are no numbers."""
    folder = tmp_path_factory.mktemp("models")
    passport = Passport.read(small.folder)
    renamed = {**passport.io, "outputs": [{**passport.io["outputs"][0], "name": "other"}]}
    scheme = {"scheme": "float32", "io_type": "float32"}
    for name, io in (("float32", passport.io), ("renamed", renamed)):
        content = conversion.convert(small.load(), Passport(io, scheme=scheme), {})
        (folder / name).write_bytes(content)
    signature = keras_io.input_signature(passport.io)["image"]

    @tf.function(input_signature=[signature])
    def broken(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": tf.math.log(-tf.reduce_mean(image, [1, 2])) * tf.ones([1, 3])}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([broken.get_concrete_function()], tf.Module())
    (folder / "broken").write_bytes(converter.convert())
    return {name: str(folder / name) for name in ("float32", "renamed", "broken")}


def evaluate(small: Any, models: dict[str, str], path: Path) -> dict[str, State | str]:
    files = data.split_files(small.examples, "eval") + data.split_files(small.examples, "train")
    with beam.Pipeline("FnApiRunner") as pipeline:
        states = pipeline | beam.Create(files) | transforms.Evaluate(small.path, ["image"], ["logits"], models)
        states | beam.Map(transforms.write_states, str(path))
    return transforms.read_states(str(path))


def test_one_pass_evaluates_all_models_and_gives_up_the_broken(
    small: Any, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "BATCH_SIZE", 7)  # 32 examples: with a smaller last batch
    states = evaluate(small, models, tmp_path / "states")
    assert states["broken"] == "outputs logits hold NaN or infinite values"
    assert states["renamed"] == "KeyError: 'logits'"
    assert isinstance(states["float32"], State)
    assert states["float32"].examples == 32 + 64

    metrics = CompiledMetrics(small.module)
    batches = data.parsed_batches(data.split_files(small.examples, "eval"), data.ExampleParser(small.module), 32)
    inputs, label, _ = next(iter(batches))
    metrics.prepare(label, [small.load()(inputs).numpy()])
    found = metrics.result(states["float32"])
    model = small.load()
    small.module.compile_model(model)
    total: dict[str, float] = dict.fromkeys(found, 0.0)
    for split, count in (("eval", 32), ("train", 64)):
        opened = data.evaluation_data(data.split_files(small.examples, split), small.module, batch_size=64)
        values = model.evaluate(opened.dataset, verbose=0, return_dict=True)
        total = {name: total[name] + values[name] * count / 96 for name in total}
    assert found == pytest.approx(total, abs=1e-5)


def test_states_merge_and_an_error_anywhere_is_one_of_the_whole() -> None:
    one: transforms.States = {"a": State(1, 0.5, [np.array(1.0)]), "b": State(1, 1.0, [np.array(2.0)])}
    two: transforms.States = {"a": State(2, 0.5, [np.array(3.0)]), "b": "it broke"}
    three: transforms.States = {"a": State(), "b": State(1, 1.0, [np.array(2.0)])}
    merge = transforms.MergeStates()
    for order in ([one, two, three], [three, two, one], [two, one, three]):
        merged = merge.create_accumulator()
        for states in order:
            merged = merge.add_input(merged, states)
        merged = merge.extract_output(merge.merge_accumulators([merged, {}]))
        assert isinstance(merged["a"], State)
        assert (merged["a"].examples, merged["a"].loss) == (3, 1.0)
        assert merged["a"].metrics is not None
        assert merged["a"].metrics[0] == 4.0
        assert merged["b"] == "it broke"
    assert one["a"] == State(1, 0.5, one["a"].metrics)  # type: ignore[union-attr] # what went in is as it was
