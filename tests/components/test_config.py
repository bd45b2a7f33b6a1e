from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from edgeline import targets
from edgeline.budget import DIRECTIONS, DROP_BOUNDS, OBJECTIVES, Budget
from edgeline.clusterer.config import CENTROID_INITIALIZATIONS, Cluster
from edgeline.config import PROTECTED, FineTuning, StepConfig, deviation_tag
from edgeline.data_gate.config import Gate
from edgeline.evaluator.config import Evaluation
from edgeline.model_importer.config import Import
from edgeline.pruner.config import SCHEDULES, Prune
from edgeline.quantizer.config import Quantize
from edgeline.representative_dataset.config import STRATEGIES, Sample
from edgeline.schemes import SCHEMES, io_types
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.config import Train

CONFIGS: list[type[StepConfig]] = [Train, Prune, Cluster, Quantize, Sample, Export, Budget, Evaluation, Gate, Import]


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_are_valid_and_encode_to_primitives(config: type[StepConfig]) -> None:
    encoded = config().encoded()
    assert encoded
    assert {name: type(value) for name, value in encoded.items()} == config.encoded_types()
    assert set(config.encoded_types().values()) <= {bool, int, float, str}
    assert config.decoded(encoded) == config()
    assert config(**config().parameters()) == config()
    assert json.loads(json.dumps(config().parameters())) == config().parameters()


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_frozen(config: type[StepConfig]) -> None:
    name = next(iter(config().parameters()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), name, 1)


def test_an_int_becomes_a_float_where_a_float_is_declared() -> None:
    config = Prune(initial_sparsity=0, ramp=1)
    assert type(config.initial_sparsity) is float
    assert type(config.ramp) is float
    assert config == Prune(initial_sparsity=0.0, ramp=1.0)
    assert type(Budget(max_latency_ms=5).max_latency_ms) is float
    assert Budget(max_latency_ms=None).max_latency_ms is None


WRONG_TYPES: list[tuple[type[StepConfig], str, Any, str]] = [
    (Prune, "epochs", 2.0, "Prune.epochs must be of type int, received 2.0"),
    (Prune, "epochs", True, "Prune.epochs must be of type int, received True"),
    (Prune, "epochs", "2", "Prune.epochs must be of type int, received '2'; write epochs=2"),
    (Prune, "sparsity", "0.5", "Prune.sparsity must be of type float, received '0.5'; write sparsity=0.5"),
    (Prune, "sparsity", True, "Prune.sparsity must be of type float, received True"),
    (Prune, "sparsity", None, "Prune.sparsity must be of type float, received None"),
    (Prune, "sparsity", math.nan, "Prune.sparsity must be a finite number, received nan"),
    (Budget, "max_drop", math.inf, "Budget.max_drop must be a finite number, received inf"),
    (Cluster, "clusters", 16.0, "Cluster.clusters must be of type int, received 16.0"),
    (Quantize, "scheme", None, "Quantize.scheme must be of type str, received None"),
    (Sample, "samples", 2.5, "Sample.samples must be of type int, received 2.5"),
    (Export, "timeout_seconds", 0.5, "Export.timeout_seconds must be of type int, received 0.5"),
    (
        Train,
        "early_stopping_patience",
        False,
        "Train.early_stopping_patience must be of type int, or None, received False",
    ),
    (Prune, "include", [1], "Prune.include must be a list of strings, received [1]"),
    (
        Prune,
        "layer_sparsity",
        {"Dense": True},
        "Prune.layer_sparsity must be a mapping to numbers, received {'Dense': True}",
    ),
    (Prune, "block_size", (1, 4, 1), "Prune.block_size must be a pair of integers, received (1, 4, 1)"),
    (
        Cluster,
        "layer_clusters",
        {"Dense": 8.0},
        "Cluster.layer_clusters must be a mapping to integers, received {'Dense': 8.0}",
    ),
    (Budget, "max_slice_drops", [1], "Budget.max_slice_drops must be a mapping to numbers, received [1]"),
    (Budget, "value_threshold", math.nan, "Budget.value_threshold must be a finite number, received nan"),
    (Evaluation, "like", 1, "Evaluation.like must be of type str, or a mapping, or None, received 1"),
]

#: Values as they were written before they had Python's own types, and as TFX is given them.
OLD_SPELLINGS: list[tuple[type[StepConfig], str, Any, str]] = [
    (Quantize, "keep_float", '["x"]', "a list of strings, received '[\"x\"]'; write keep_float=['x']"),
    (Quantize, "sparse", 1, "True or False, received 1; write sparse=True"),
    (Train, "deterministic", 0, "True or False, received 0; write deterministic=False"),
    (Prune, "include", "[]", "a list of strings, received '[]'; write include=[]"),
    (Prune, "exclude", "Dense", "a list of strings, received 'Dense'; write exclude=['Dense']"),
    (
        Prune,
        "layer_sparsity",
        '{"a": 0.5}',
        "a mapping to numbers, received '{\"a\": 0.5}'; write layer_sparsity={'a': 0.5}",
    ),
    (Prune, "block_size", "1x4", "a pair of integers, received '1x4'; write block_size=[1, 4]"),
    (Prune, "m_by_n", "2x4", "a pair of integers, or None, received '2x4'; write m_by_n=[2, 4]"),
    (Prune, "m_by_n", "", "a pair of integers, or None, received ''; write m_by_n=None"),
    (Import, "inputs", "a;b=?,4", "a list of strings, received 'a;b=?,4'; write inputs=['a', 'b=?,4']"),
    (Import, "signature", "", "of type str, or None, received ''; write signature=None"),
    (Gate, "last_statistics", "", "of type str, or None, received ''; write last_statistics=None"),
    (Gate, "allow_drift", 1, "True or False, received 1; write allow_drift=True"),
    (Budget, "value_threshold", "none", "of type float, or None, received 'none'; write value_threshold=None"),
    (Budget, "value_threshold", "0.85", "of type float, or None, received '0.85'; write value_threshold=0.85"),
    (
        Budget,
        "max_slice_drops",
        '{"a": 1}',
        "a mapping to numbers, received '{\"a\": 1}'; write max_slice_drops={'a': 1.0}",
    ),
]


DROPS = (
    'Budget.max_slice_drops must be a mapping from slices to drops of at least 0, such as {"label": 0.03}, received '
)
LIKE = "Evaluation.like must be deployed, a mapping with `of` and `contract`, or None, received "
GOOD_CONTRACT = {"of": "x.tflite", "contract": {"inputs": [], "outputs": [], "labels": [], "target": None}}
BAD_CONTRACT = {"of": "x.tflite", "contract": {"inputs": []}}


BAD_VALUES: list[tuple[type[StepConfig], str, Any, str]] = [
    *(
        bad
        for config in (Train, Prune, Cluster, Quantize)
        for bad in (
            (config, "epochs", 0, f"{config.__name__}.epochs must be at least 1, received 0"),
            (config, "batch_size", 0, f"{config.__name__}.batch_size must be at least 1, received 0"),
            (config, "seed", -1, f"{config.__name__}.seed must be in [0, 2**31), received -1"),
            (config, "seed", 2**31, f"{config.__name__}.seed must be in [0, 2**31), received 2147483648"),
            (
                config,
                "deterministic",
                None,
                f"{config.__name__}.deterministic must be True or False, received None",
            ),
        )
    ),
    *(
        (
            Train,
            "early_stopping_patience",
            wrong,
            f"Train.early_stopping_patience must be at least 1, or None to train on, received {wrong}",
        )
        for wrong in (0, -1)
    ),
    (Train, "warm_start_digest", "a", "Train.warm_start_digest must be None without warm_start, received 'a'"),
    (Prune, "sparsity", 0, "Prune.sparsity must be above 0 and below 1, received 0.0"),
    (Prune, "sparsity", 1, "Prune.sparsity must be above 0 and below 1, received 1.0"),
    (Prune, "sparsity", 80, "Prune.sparsity must be above 0 and below 1, received 80.0"),
    (
        Prune,
        "schedule",
        "cubic",
        "Prune.schedule must be one of polynomial_decay, constant, received 'cubic'",
    ),
    (Prune, "initial_sparsity", 0.6, "Prune.initial_sparsity must be in [0, 0.5], received 0.6"),
    (Prune, "initial_sparsity", -0.1, "Prune.initial_sparsity must be in [0, 0.5], received -0.1"),
    (Prune, "ramp", 0, "Prune.ramp must be above 0 and at most 1, received 0.0"),
    (Prune, "ramp", 1.01, "Prune.ramp must be above 0 and at most 1, received 1.01"),
    (Prune, "min_layer_share", 1, "Prune.min_layer_share must be at least 0 and below 1, received 1.0"),
    (Prune, "begin_step", -1, "Prune.begin_step must be at least 0, or None for the first, received -1"),
    (Prune, "end_step", 0, "Prune.end_step must be above 0, or None for the ramp's end, received 0"),
    (
        Prune,
        "frequency",
        0,
        "Prune.frequency must be at least 1, or None to derive it from the number of steps, received 0",
    ),
    (Prune, "power", 0, "Prune.power must be above 0, received 0.0"),
    (
        Prune,
        "block_size",
        (0, 4),
        "Prune.block_size must be height and width of at least 1, such as (1, 4), received [0, 4]",
    ),
    (Prune, "block_pooling", "AVG", "Prune.block_pooling must be one of avg, max, received 'AVG'"),
    (Prune, "policy", "gpu", "Prune.policy must be one of xnnpack, or None, received 'gpu'"),
    *(
        (
            Prune,
            "m_by_n",
            wrong,
            "Prune.m_by_n must be (M, N) with M below N, such as (2, 4) for 2 zeros in every 4 weights, received "
            f"{list(wrong)}",
        )
        for wrong in ((4, 2), (2, 2), (0, 4))
    ),
    (Prune, "m_by_n", (1, 4), "Prune.sparsity must be 0.25 where m_by_n is (1, 4), received 0.5"),
    *(
        (
            Prune,
            "layer_sparsity",
            wrong,
            "Prune.layer_sparsity must be a mapping from patterns over layer names or types to a sparsity above 0 "
            f'and below 1, such as {{"Dense": 0.9}}, received {wrong!r}',
        )
        for wrong in ({"Dense": 1.0}, {"": 0.5})
    ),
    *(
        (
            Cluster,
            "layer_clusters",
            wrong,
            "Cluster.layer_clusters must be a mapping from patterns over layer names or types to a number of "
            f'values of at least 2, such as {{"Dense": 8}}, received {wrong!r}',
        )
        for wrong in ({"Dense": 1},)
    ),
    *(
        (
            config,
            name,
            wrong,
            f"{config.__name__}.{name} must be a list of patterns over layer names or types, such as "
            f'["stem*", "Dense"], received {wrong!r}',
        )
        for config in (Prune, Cluster)
        for name in ("include", "exclude")
        for wrong in ([""], ["Dense", ""])
    ),
    (Prune, "protect", "stem", "Prune.protect must be one of first, last, both, or None, received 'stem'"),
    (Prune, "protect", "none", "Prune.protect must be one of first, last, both, or None, received 'none'"),
    (Cluster, "per_channel", None, "Cluster.per_channel must be True or False, received None"),
    (Cluster, "clusters", 1, "Cluster.clusters must be at least 2, received 1"),
    (
        Cluster,
        "centroid_initialization",
        "kmeans",
        "Cluster.centroid_initialization must be one of linear, random, density_based, kmeans_plus_plus, "
        "received 'kmeans'",
    ),
    (Cluster, "min_layer_share", -0.1, "Cluster.min_layer_share must be at least 0 and below 1, received -0.1"),
    (
        Quantize,
        "scheme",
        "int4",
        "Quantize.scheme must be one of float32, dynamic_range, float16, int8, int16x8, auto, qat8, received 'int4'; "
        "did you mean int8?",
    ),
    (Quantize, "io_type", "int16", "Quantize.io_type must be one of float32, int8, uint8, received 'int16'"),
    (Sample, "samples", 0, "Sample.samples must be at least 1, received 0"),
    (Sample, "seed", -1, "Sample.seed must be in [0, 2**31), received -1"),
    (Export, "parity_samples", 0, "Export.parity_samples must be at least 1, received 0"),
    (Export, "timeout_seconds", 0, "Export.timeout_seconds must be at least 1, received 0"),
    (Sample, "strategy", "random", "Sample.strategy must be one of uniform, stratified, diverse, received 'random'"),
    (Sample, "by", "", "Sample.by must be label, or the name of a feature, received ''"),
    (Sample, "winsor_percent", 50, "Sample.winsor_percent must be at least 0 and below 50, received 50.0"),
    (Sample, "max_bad_fraction", 1, "Sample.max_bad_fraction must be at least 0 and below 1, received 1.0"),
    (
        Budget,
        "metric",
        "",
        "Budget.metric must be of type str, or a list of strings, or None, received ''; write metric=None",
    ),
    (Budget, "metric", ["a", "a"], "Budget.metric names a 2 times; name it once"),
    (Budget, "direction", "up", "Budget.direction must be one of max, min, or None, received 'up'"),
    (Budget, "max_drop", -0.01, "Budget.max_drop must be at least 0, received -0.01"),
    (Budget, "max_bytes", 0, "Budget.max_bytes must be at least 1, or None for no limit, received 0"),
    (Budget, "max_bytes", -1, "Budget.max_bytes must be at least 1, or None for no limit, received -1"),
    (Budget, "max_bytes", -2, "Budget.max_bytes must be at least 1, or None for no limit, received -2"),
    (Budget, "max_zlib_bytes", 0, "Budget.max_zlib_bytes must be at least 1, or None for no limit, received 0"),
    (Budget, "max_latency_ms", 0, "Budget.max_latency_ms must be above 0, or None for no limit, received 0.0"),
    (Budget, "max_latency_ms", -0.5, "Budget.max_latency_ms must be above 0, or None for no limit, received -0.5"),
    (Budget, "drop_bound", "lower", "Budget.drop_bound must be one of point, upper, received 'lower'"),
    (Budget, "max_deployed_drop", -0.5, "Budget.max_deployed_drop must be at least 0, or None for any, received -0.5"),
    (Budget, "max_slice_drops", {"label": -1}, DROPS + "{'label': -1.0}"),
    (Budget, "max_slice_drops", {"": 0.1}, DROPS + "{'': 0.1}"),
    (Budget, "min_slice_examples", 0, "Budget.min_slice_examples must be at least 1, received 0"),
    (Budget, "max_cold_start_ms", 0, "Budget.max_cold_start_ms must be above 0, or None for no limit, received 0.0"),
    (Budget, "max_peak_rss_bytes", 0, "Budget.max_peak_rss_bytes must be at least 1, or None for no limit, received 0"),
    (Gate, "max_drift", 0, "Gate.max_drift must be above 0 and at most 1, or None for any, received 0.0"),
    (Gate, "max_drift", 1.5, "Gate.max_drift must be above 0 and at most 1, or None for any, received 1.5"),
    (Gate, "max_drift", -1, "Gate.max_drift must be above 0 and at most 1, or None for any, received -1.0"),
    (Gate, "allow_drift", None, "Gate.allow_drift must be True or False, received None"),
    (Evaluation, "max_bad_records", -1, "Evaluation.max_bad_records must be at least 0, received -1"),
    (Evaluation, "check_keras", None, "Evaluation.check_keras must be True or False, received None"),
    (Budget, "objective", "size", "Budget.objective must be one of zlib_bytes, bytes, latency_ms, received 'size'"),
    (Budget, "target", "tpu", "Budget.target must be one of cpu, gpu, edgetpu, dsp, micro, received 'tpu'"),
    (Export, "one_example", None, "Export.one_example must be True or False, received None"),
    (Quantize, "sparse", None, "Quantize.sparse must be True or False, received None"),
    (Quantize, "sensitivity_layers", 0, "Quantize.sensitivity_layers must be at least 1, or None, received 0"),
    *((Evaluation, "like", wrong, LIKE + repr(wrong)) for wrong in ("none", "x.tflite", {"of": "x"}, BAD_CONTRACT)),
]


@pytest.mark.parametrize(("config", "name", "value", "message"), [*WRONG_TYPES, *BAD_VALUES])
def test_a_bad_value_is_refused_with_field_expectation_and_value(
    config: type[StepConfig], name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        config(**{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(("config", "name", "value", "message"), OLD_SPELLINGS)
def test_an_old_spelling_is_refused_with_the_new_one(
    config: type[StepConfig], name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        config(**{name: value})
    assert str(caught.value) == f"{config.__name__}.{name} must be {message}"
    # and what it says to write is taken
    needed = {"sparse": {"scheme": "float32"}}.get(name, {})
    config(**needed, **eval(f"dict({message.partition('; write ')[2]})"))


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (Prune, {"sparsity": 1e-9}),
        (Prune, {"sparsity": 0.5, "initial_sparsity": 0.5}),
        (Prune, {"ramp": 1, "min_layer_share": 0}),
        (Prune, {"begin_step": 0, "end_step": 1, "frequency": 1, "power": 0.5, "protect": "both"}),
        (Prune, {"m_by_n": [2, 4], "include": ["Dense"], "policy": "xnnpack"}),
        (Prune, {"block_size": [8, 1], "block_pooling": "max", "layer_sparsity": {"conv*": 0.1, "Dense": 0.9}}),
        (Cluster, {"layer_clusters": {"Dense": 2}, "per_channel": True, "exclude": ["stem*"]}),
        (Cluster, {"clusters": 2, "min_layer_share": 0.999}),
        (Train, {"epochs": 1, "batch_size": 1, "seed": 2**31 - 1}),
        (Train, {"warm_start": "model.keras", "warm_start_digest": "a"}),
        (Sample, {"samples": 1, "seed": 2**31 - 1}),
        (Export, {"parity_samples": 1, "timeout_seconds": 1}),
        (Budget, {"max_drop": 0, "max_bytes": 1, "max_zlib_bytes": None, "max_latency_ms": 1e-3}),
        *((Prune, {"schedule": name}) for name in SCHEDULES),
        *((Cluster, {"centroid_initialization": name}) for name in CENTROID_INITIALIZATIONS),
        *((Quantize, {"scheme": name}) for name in SCHEMES),
        *((Quantize, {"scheme": scheme, "io_type": io}) for scheme in ("int8", "qat8") for io in io_types()),
        *((Budget, {"metric": "score", "direction": name}) for name in DIRECTIONS),
        (Budget, {"metric": ["boxes_mae:min:0.5", "accuracy", "score:max"]}),
        *((Budget, {"objective": name}) for name in OBJECTIVES),
        *((Budget, {"drop_bound": name}) for name in DROP_BOUNDS),
        (Budget, {"max_slice_drops": {"camera,hour": 0, "label": 0.03}, "min_slice_examples": 1}),
        *((Budget, {"value_threshold": value}) for value in (None, 0, -0.5, 1e-3)),
        (Budget, {"metric": "loss", "direction": "min", "max_deployed_drop": None, "max_peak_rss_bytes": 1}),
        (Evaluation, {"max_bad_records": 0, "check_keras": True, "allow_chance_level": True}),
        *((Gate, {"max_drift": value, "allow_drift": True}) for value in (None, 0.001, 1)),
        *((Evaluation, {"like": like}) for like in (None, "deployed", GOOD_CONTRACT)),
        *((Budget, {"target": name}) for name in targets.TARGETS),
    ],
)
def test_the_edges_of_each_range_are_allowed(config: type[StepConfig], values: dict[str, Any]) -> None:
    parameters = config(**values).parameters()
    assert {name: parameters[name] for name in values} == values


@pytest.mark.parametrize("scheme", ["float32", "dynamic_range", "float16", "int16x8"])
@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_integer_ports_need_integer_activations_of_8_bits(scheme: str, io_type: str) -> None:
    with pytest.raises(ValueError, match=f"'{io_type}' needs scheme int8 or qat8.*received scheme '{scheme}'.*float32"):
        Quantize(scheme=scheme, io_type=io_type)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "float32"])
def test_sparse_files_are_float32(scheme: str) -> None:
    with pytest.raises(ValueError, match=f"Quantize.sparse needs scheme float32, received scheme '{scheme}': XN"):
        Quantize(scheme, sparse=True)


@pytest.mark.parametrize(
    ("config", "token"),
    [
        (Prune(0.8), "prune80"),
        (Prune(0.57), "prune57"),  # 0.57 * 100 is 56.99999999999999
        (Prune(0.875), "prune87p5"),
        (Prune(0.999), "prune99p9"),
        (Prune(1e-7), "prune0p00001"),
        (Prune(0.5, m_by_n=(2, 4)), "prune50_2by4"),
        (Prune(0.25, m_by_n=(1, 4)), "prune25_1by4"),
        (Cluster(16), "cluster16"),
        (Quantize("int8"), "int8"),
        (Quantize("int8", "int8"), "int8_io"),
        (Quantize("qat8", "uint8"), "qat8_uint8io"),
        (Quantize("float32"), "float32"),
        (Quantize("float32", sparse=True), "float32_sparse"),
        (Prune(0.8, epochs=9, batch_size=7, seed=3), "prune80"),
        (Cluster(16, epochs=9, batch_size=7, seed=3), "cluster16"),
        (Quantize("qat8", epochs=9, batch_size=7, seed=3), "qat8"),
    ],
)
def test_tokens_say_what_is_asked_but_for_what_holds_for_a_whole_run(
    config: Prune | Cluster | Quantize, token: str
) -> None:
    assert config.token == token


def test_different_requests_never_share_a_token() -> None:
    requests = [
        Prune(0.8),
        Prune(0.8000001),
        Prune(0.8000002),
        Prune(0.8, "constant"),
        Prune(0.8, ramp=0.5),
        Prune(0.8, ramp=1.0),
        Prune(0.8, initial_sparsity=0.5),
        Prune(0.8, min_layer_share=0.0),
        Prune(0.8, include=["Dense"]),
        Prune(0.8, exclude=["Dense"]),
        Prune(0.8, layer_sparsity={"Dense": 0.5}),
        Prune(0.8, layer_sparsity={"Dense": 0.5, "*": 0.6}),
        Prune(0.8, layer_sparsity={"*": 0.6, "Dense": 0.5}),  # the first that matches counts
        Prune(0.8, block_size=(1, 4)),
        Prune(0.5, m_by_n=(2, 4)),
        Prune(0.5),
        Prune(0.8, "constant", min_layer_share=0.0),
        Cluster(16),
        Cluster(16, "linear"),
        Cluster(16, min_layer_share=0.0),
        *(Quantize(scheme) for scheme in SCHEMES),
        *(Quantize(scheme, io) for scheme in ("int8", "qat8") for io in ("int8", "uint8")),
    ]
    tokens = [request.token for request in requests]
    assert len(set(tokens)) == len(tokens)


def test_a_deviation_is_tagged_and_the_tag_depends_on_nothing_else() -> None:
    tagged = Prune(0.8, "constant").token
    assert tagged.startswith("prune80_x")
    assert len(tagged) == len("prune80_x0000")
    # the same deviation with another named field and other run settings has the same tag
    assert Prune(0.5, "constant", epochs=7).token == tagged.replace("80", "50")
    # saying a default aloud, or as an int, is no deviation
    assert Prune(0.8, "polynomial_decay", 0, 0.75, 0.01).token == "prune80"
    assert deviation_tag(Prune(0.8), ()) != ""
    assert deviation_tag(Prune(), ()) == ""


def test_run_settings_can_only_be_given_by_name() -> None:
    assert Prune(0.8, "constant", 0.5, 1, 0) == Prune(
        sparsity=0.8, schedule="constant", initial_sparsity=0.5, ramp=1.0, min_layer_share=0.0
    )
    with pytest.raises(TypeError):
        Prune(0.8, "constant", 0.5, 1, 0, 7)  # type: ignore[misc]
    with pytest.raises(TypeError):
        FineTuning(3)  # type: ignore[misc]


def test_two_spellings_of_one_request_are_one() -> None:
    first = Prune(0.8, include=["b", "a", "b"], layer_sparsity={"b": 0.5, "a": 0.6}, block_size=(1, 4))
    other = Prune(0.8, include=("a", "b"), layer_sparsity=OrderedDict(b=0.5, a=0.6), block_size=[1, 4])  # type: ignore[arg-type]
    assert first == other
    assert hash(first) == hash(other)
    assert first.encoded() == other.encoded()
    assert first.include == ("a", "b")
    assert Prune(0.8, include=[]).token == "prune80"
    # the first pattern that matches counts, so that their order is part of the request
    turned = dataclasses.replace(first, layer_sparsity={"a": 0.6, "b": 0.5})
    assert turned != first
    assert turned.encoded()["layer_sparsity"] == '{"a": 0.6, "b": 0.5}'
    assert Budget(max_slice_drops={"b": 1, "a": 0}) == Budget(max_slice_drops={"a": 0.0, "b": 1.0})
    inputs = Import(inputs=["b", "a"])  # the order of the model's inputs
    assert inputs != Import(inputs=["a", "b"])


def test_a_config_cannot_be_changed_through_its_values() -> None:
    drops = {"label": 0.1}
    budget = Budget(max_slice_drops=drops)
    drops["label"] = 0.5
    assert budget.max_slice_drops == {"label": 0.1}
    with pytest.raises(TypeError):
        budget.max_slice_drops["label"] = 0.5  # type: ignore[index]


# what TFX is given ----------------------------------------------------------------------------------------------------

SHARES = st.floats(0.01, 0.99)
COUNTS = st.integers(1, 2**40)
TEXTS = st.sampled_from(["none", "deployed", "1", "a b"]) | st.text('[]{}",none;ä', min_size=1, max_size=5)
LISTS = st.lists(TEXTS, max_size=3)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


#: What a field of a name may be; of other names, by its type.
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**31 - 1),
    "distillation": SHARES, "ramp": SHARES, "min_layer_share": SHARES, "sparsity": SHARES, "initial_sparsity": SHARES,
    "max_bad_fraction": SHARES, "winsor_percent": SHARES, "max_drift": maybe(SHARES),
    "protect": maybe(st.sampled_from(PROTECTED)), "schedule": st.sampled_from(SCHEDULES),
    "policy": maybe(st.just("xnnpack")), "block_pooling": st.sampled_from(["avg", "max"]),
    "m_by_n": maybe(st.sampled_from([(1, 2), (2, 4)])), "block_size": st.tuples(COUNTS, COUNTS),
    "layer_sparsity": st.dictionaries(TEXTS, SHARES, max_size=3),
    "layer_clusters": st.dictionaries(TEXTS, st.integers(2, 99), max_size=3), "clusters": st.integers(2, 99),
    "centroid_initialization": st.sampled_from(CENTROID_INITIALIZATIONS),
    "scheme": st.sampled_from(sorted(SCHEMES)), "io_type": st.sampled_from(io_types()),
    "strategy": st.sampled_from(STRATEGIES), "direction": maybe(st.sampled_from(DIRECTIONS)),
    "metric": maybe(TEXTS | LISTS | st.just(["mae:min:0.5", "score:max"])),
    "drop_bound": st.sampled_from(DROP_BOUNDS), "objective": st.sampled_from(OBJECTIVES),
    "target": st.sampled_from(sorted(targets.TARGETS)),
    "max_slice_drops": st.dictionaries(TEXTS, SHARES | COUNTS, max_size=3),
    # all of LIMITS have a field; what others do is in tests/extending
    "more_limits": st.just({}),
    "like": st.sampled_from([None, "deployed", GOOD_CONTRACT]),
}  # fmt: skip
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(), int: COUNTS, float: SHARES, str: TEXTS, Sequence[str]: LISTS,
    int | None: maybe(COUNTS), float | None: maybe(SHARES), str | None: maybe(TEXTS),
}  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> StepConfig:
    config = draw(st.sampled_from(CONFIGS))
    kinds = config.field_types()
    names = draw(st.lists(st.sampled_from(sorted(kinds)), max_size=5, unique=True))
    values = {n: draw(BY_NAME[n] if n in BY_NAME else BY_TYPE[kinds[n]]) for n in names}
    try:
        return config(**values)
    except ValueError:  # fields that contradict each other
        reject()


@settings(max_examples=300, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(requests())
def test_what_tfx_is_given_says_the_same_request(config: StepConfig) -> None:
    encoded = config.encoded()
    assert {name: type(value) for name, value in encoded.items()} == config.encoded_types()
    again = type(config).decoded({**encoded, "toolchain": "t"})
    assert again == config
    assert again.encoded() == encoded
    assert type(config)(**config.parameters()) == config


@given(requests(), requests())
def test_two_requests_are_given_differently(a: StepConfig, b: StepConfig) -> None:
    assert (a.encoded() == b.encoded() and type(a) is type(b)) == (a == b)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("max_bytes", "-1", "must be at least 1, or None for no limit, received -1"),
        ("max_bytes", "many", "must be of type int, or None, received 'many'"),
        ("max_bytes", "1.5", "must be of type int, or None, received 1.5"),
        ("max_slice_drops", "{", "must be a mapping to numbers, received '{'"),
    ],
)
def test_what_a_run_is_given_is_checked_too(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^Budget.{name} {re.escape(message)}"):
        Budget.decoded({**Budget().encoded(), name: text})


def test_describe_reads_like_the_request() -> None:
    assert Sample(64, 7).describe() == (
        "sample samples=64 seed=7 strategy=uniform by=label winsor_percent=0.1 max_bad_fraction=0.0"
    )


def test_only_int8_and_qat8_say_whether_they_train() -> None:
    assert [scheme for scheme in SCHEMES if Quantize(scheme).trains] == ["qat8"]
