"""What the Evaluator may be asked: the budget a candidate has to meet."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from edgeline.budget import DEPLOYED, NONE
from edgeline.config import StepConfig


@dataclasses.dataclass(frozen=True)
class Evaluation(StepConfig):
    """How the candidates are evaluated, apart from what they may cost.

    Attributes:
      max_bad_records: records of the eval split that may be unreadable, or refused by the module, before the evaluation
        fails; they are counted and left out. At least 0.
      check_keras: 1: also evaluate the Keras model that the float32 baseline was converted from, apart; 0: do not.
      like: whose contract (see `edgeline.deployed.contract`) a candidate must keep: `deployed`, that of the model
        pushed last, `none`, or a JSON object: `of` (what the reasons call that model) and `contract`.
    """

    max_bad_records: int = 0
    check_keras: int = 0
    like: str = DEPLOYED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("max_bad_records", self.max_bad_records >= 0, "at least 0")
        self.check("check_keras", self.check_keras in (0, 1), "0 or 1")
        self._check_like()

    @property
    def given_contract(self) -> tuple[str, dict[str, Any]] | None:
        """What the model is called whose contract `like` spells out, and that contract; None where it does not."""
        if self.like in (DEPLOYED, NONE):
            return None
        given = json.loads(self.like)
        return given["of"], given["contract"]

    def _check_like(self) -> None:
        expected = f"{DEPLOYED}, {NONE}, or a JSON object with `of` and `contract`"
        try:
            given = self.given_contract
        except (ValueError, TypeError, KeyError):
            self.check("like", False, expected)
        else:
            keys = {"inputs", "outputs", "labels", "target"}
            self.check("like", given is None or (isinstance(given[1], dict) and given[1].keys() == keys), expected)
