"""What the Evaluator may be asked: the budget a candidate has to meet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from edgeline.budget import DEPLOYED
from edgeline.config import StepConfig, Values

#: What a contract says of a model.
_CONTRACT = {"inputs", "outputs", "labels", "target"}


@dataclasses.dataclass(frozen=True)
class Evaluation(StepConfig):
    """How the candidates are evaluated, apart from what they may cost.

    Attributes:
      max_bad_records: records of the eval split that may be unreadable, or refused by the module, before the evaluation
        fails; they are counted and left out. At least 0.
      check_keras: whether to also evaluate the Keras model that the float32 baseline was converted from, apart.
      like: whose contract (see `edgeline.deployed.contract`) a candidate must keep: `deployed`, that of the model
        pushed last; a mapping with `of` (what the reasons call that model) and `contract`; or None, nobody's.
      allow_chance_level: whether a model may be the first that is pushed which is no better, beyond luck, than always
        answering the commonest class (accuracy of one label) or the mean (mse, mae).
    """

    max_bad_records: int = 0
    check_keras: bool = False
    like: str | Mapping[str, Any] | None = DEPLOYED
    allow_chance_level: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("max_bad_records", self.max_bad_records >= 0, "at least 0")
        contract = self.given_contract
        self.check(
            "like",
            self.like in (DEPLOYED, None)
            or (contract is not None and isinstance(contract[1], dict) and contract[1].keys() == _CONTRACT),
            f"{DEPLOYED}, a mapping with `of` and `contract`, or None",
        )
        if isinstance(self.like, Mapping):  # in one order: it is part of the cache key
            in_order = json.loads(json.dumps(self.parameters()["like"], sort_keys=True))
            object.__setattr__(self, "like", Values(in_order))

    @property
    def given_contract(self) -> tuple[str, dict[str, Any]] | None:
        """What the model is called whose contract `like` spells out, and that contract; None where it does not."""
        if not isinstance(self.like, Mapping) or self.like.keys() != {"of", "contract"}:
            return None
        return self.like["of"], self.like["contract"]
