from __future__ import annotations

import dataclasses

import pytest

from edgeline import schemes
from edgeline.quantizer.config import Quantize
from edgeline.schemes import SCHEMES


@pytest.mark.parametrize("name", SCHEMES)
def test_an_entry_agrees_with_itself(name: str) -> None:
    scheme = SCHEMES[name]
    assert scheme.words
    # a rung that is a ladder itself would never be made
    assert all(not SCHEMES[rung].ladder for rung in scheme.ladder)
    # integers need ranges, from samples or from a training; floats need none
    if not scheme.ladder:
        assert (scheme.calibrated or scheme.trained) is scheme.integers_only
        assert scheme.tolerance.relative is not None or scheme.tolerance.cosine is not None
    # what Quantize asks of it is a field of Quantize
    assert {field.name for field in dataclasses.fields(Quantize)} >= set(scheme.settings)
    assert scheme.io[0] == Quantize().io_type
    assert scheme.integer_io is None or scheme.integers_only


def test_what_is_known_of_all() -> None:
    assert schemes.post_training() == ("float32", "dynamic_range", "float16", "int8", "int16x8", "auto")
    assert schemes.trained() == ("qat8",)
    assert schemes.io_types() == ("float32", "int8", "uint8")
    assert schemes.settings() == ("sparse", "keep_float", "keep_float_ops", "sensitivity_layers", "distillation")
    assert schemes.knowing("sensitivity_layers") == ("int8", "auto")
    assert {name: scheme.integer_io for name, scheme in SCHEMES.items() if scheme.integer_io} == {
        "int8": "int8", "qat8": "int8"
    }  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    ("setting", "value"),
    [("sparse", True), ("keep_float", ("a",)), ("keep_float_ops", ("ADD",)), ("sensitivity_layers", 3),
     ("distillation", 0.5)],
)  # fmt: skip
def test_a_setting_is_for_the_schemes_that_know_it(name: str, setting: str, value: object) -> None:
    if setting in SCHEMES[name].settings:
        assert getattr(Quantize(name, **{setting: value}), setting) == value  # type: ignore[arg-type]
    else:
        able = " or ".join(schemes.knowing(setting))
        with pytest.raises(ValueError, match=f"^Quantize.{setting} needs scheme {able}, received scheme '{name}'"):
            Quantize(name, **{setting: value})  # type: ignore[arg-type]
