"""What of a model becomes int8 and what stays float: as asked, or as the validation split decides."""

from __future__ import annotations

import fnmatch
from typing import Any

import numpy as np
import tf_keras

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.failures import RefusedGraphError
from edgeline.data import calibration_set, reading
from edgeline.errors import UserError
from edgeline.keras_models import layers
from edgeline.model_io import graph_model, keras_file
from edgeline.model_io.graph_model import GraphModel
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.quantizer import ladder, sensitivity
from edgeline.quantizer.config import Quantize
from edgeline.quantizer.scoring import Scorer
from edgeline.schemes import SCHEMES
from edgeline.training import loop

#: How many layers `auto` may leave float where nothing else is asked.
_SUSPECTS = 8
#: Validation examples on which the rungs of a ladder are judged, at most.
_EXAMPLES = 20_000


def needs_model(config: Quantize) -> bool:
    """Returns whether the request can be answered only by looking at the calibrated model."""
    wishes = config.keep_float or config.keep_float_ops or config.sensitivity_layers
    return bool(SCHEMES[config.scheme].ladder or (wishes and not config.trains))


def select(
    config: Quantize,
    module: ModelModule,
    passport: Passport,
    *,
    examples_uri: str,
    model_uri: str,
    calibration_uri: str,
    run_uri: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Looks at the calibrated model, layer by layer where asked, and decides.

    Args:
      config: a request for which `needs_model` holds.
      module: the user's hooks.
      passport: of the model that goes in.
      examples_uri: of Examples; read for `auto` and `sensitivity_layers` only.
      model_uri: of the Model that goes in.
      calibration_uri: of the RepresentativeDataset.
      run_uri: of the ModelRun, which gets `sensitivity.json`.

    Returns:
      What it adds to the passport's scheme (scheme and keep_float), and to the step's entry: layers, sensitivity,
      ladder_walked.

    Raises:
      UserError: a pattern of keep_float or a kind of keep_float_ops matches nothing, or nothing is left to quantize.
      LadderError: no rung of `auto` holds.
      ConversionError: the model cannot be converted or calibrated; says why.
    """
    loop.start(config.seed, deterministic=config.deterministic)
    graph_alone = graph_model.is_one(model_uri)
    model = graph_model.load(model_uri, passport.io) if graph_alone else keras_file.load(model_uri, module)
    samples, _ = calibration_set.read(calibration_uri)
    io, calibrated = _calibrate(model, passport.io, samples)
    scheme: dict[str, Any] = {"scheme": config.scheme}
    kept = kept_float(config, calibrated)
    why = "keep_float"
    record: dict[str, Any] = {}
    damages: tuple[sensitivity.Damage, ...] = ()
    rungs = SCHEMES[config.scheme].ladder
    looked_at = config.sensitivity_layers or (_SUSPECTS if rungs else 0)
    if looked_at:
        scorer = Scorer(model, module, io, examples_uri, _EXAMPLES)
        if rungs:
            walked = ladder.walk(
                rungs, model, io, samples, calibrated, scorer, max_drop=config.auto_max_drop, suspects=looked_at
            )
            record["ladder_walked"] = [rung.facts() for rung in walked.rungs]
            damages, why = walked.sensitivity, config.scheme
            scheme["scheme"] = walked.rungs[-1].scheme
            kept = {"layers": list(walked.rungs[-1].keep_float), "ops": []}
        else:
            damages = tuple(sensitivity.analyse(calibrated, samples, scorer, looked_at))
    if damages:
        record["sensitivity"] = sensitivity.facts(damages)
        sensitivity.write(damages, run_uri)
    if kept["layers"] or kept["ops"]:
        scheme["keep_float"] = kept
    if isinstance(model, tf_keras.Model):
        record["layers"] = layers.facts(model, _notes(calibrated, scheme["scheme"], kept, why))
    return scheme, record


def _calibrate(
    model: tf_keras.Model | GraphModel, io: dict[str, Any], samples: dict[str, np.ndarray]
) -> tuple[dict[str, Any], Calibrated]:
    """Returns a calibrated model and its `io`: for one example at a time where it converts for no open batch."""
    errors = []
    for shapes in (io, converter.for_one_example(io)):
        try:
            return shapes, converter.calibrate(model, shapes, samples)
        except RefusedGraphError as error:
            errors.append(error)
    raise errors[0]


def kept_float(config: Quantize, calibrated: Calibrated) -> dict[str, list[str]]:
    """Returns the layers and the kinds of ops that stay float, by name.

    Raises:
      UserError: a pattern or kind matches nothing, or nothing is left to quantize.
    """
    kept: list[str] = []
    for pattern in config.keep_float:
        matching = fnmatch.filter(calibrated.layers, pattern)
        if not matching:
            raise UserError(
                f"Quantize.keep_float: {pattern!r} matches no layer; those that the TFLite model computes are "
                f"{', '.join(calibrated.layers)}"
            )
        kept += matching
    kinds = sorted({node.op for node in calibrated.nodes})
    for kind in config.keep_float_ops:
        if kind not in kinds:
            raise UserError(f"Quantize.keep_float_ops: the TFLite model has no op {kind!r}; it has {', '.join(kinds)}")
    if len(calibrated.of(kept, config.keep_float_ops)) == len(calibrated.nodes):
        raise UserError("Quantize.keep_float and keep_float_ops leave nothing to quantize; use scheme float32")
    return {"layers": sorted(set(kept), key=calibrated.layers.index), "ops": list(config.keep_float_ops)}


def examples_digest(config: Quantize, examples_uri: str) -> dict[str, str]:
    """Returns the digest of the examples where they were looked at, by the name it has in a passport."""
    looked = SCHEMES[config.scheme].ladder or config.sensitivity_layers
    return {"examples": reading.fingerprint(examples_uri)} if looked else {}


def _notes(calibrated: Calibrated, scheme: str, kept: dict[str, list[str]], why: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    floats = set(calibrated.of(kept["layers"], kept["ops"]))
    # a layer's first op is the one with its kernel
    for node in calibrated.nodes:
        for layer in node.layers:
            notes.setdefault(layer, f"left float ({why})" if node.name in floats else SCHEMES[scheme].note)
    return notes
