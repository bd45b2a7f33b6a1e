"""What the Pruner may be asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeline.config import RUN_WIDE, LayerChoice, Values, deviation_tag, percent

SCHEDULES = ("polynomial_decay", "constant")
POOLINGS = ("avg", "max")
POLICIES = ("xnnpack",)


@dataclasses.dataclass(frozen=True)
class Prune(LayerChoice):
    """Set the smallest weights of each layer to zero while fine-tuning.

    Attributes:
      sparsity: fraction of zero weights in each pruned kernel at the end, in (0, 1).
      schedule: `polynomial_decay` raises the sparsity from `initial_sparsity` over the first part of the fine-tuning;
        `constant` has it from the first step on.
      initial_sparsity: where `polynomial_decay` starts, in [0, sparsity].
      ramp: fraction of the optimizer steps in which the final sparsity is reached, in (0, 1]; the rest recovers
        accuracy. The steps are counted on the real training split, so that a short fine-tuning prunes too.
      min_layer_share: layers that hold less than this fraction of the model's weights are left alone, in [0, 1): a
        first convolution of 108 weights costs accuracy and saves nothing. Of many such layers the smallest, five times
        this fraction in all. `include` and `layer_sparsity` overrule it.
      layer_sparsity: from patterns to the sparsity of the layers that they match, in (0, 1); the first pattern that
        matches counts.
      begin_step: optimizer step of the first mask update, counted from 1; None: the first.
      end_step: of the last one, above begin_step; None: where `ramp` ends. A schedule that goes on after the training
        is allowed: what is promised then is the sparsity of its last update within the training.
      frequency: steps from update to update, at least 1; None: such that there are at most 50.
      power: exponent of `polynomial_decay`, above 0.
      block_size: height and width, inputs by outputs: weights become zero in blocks of this size, in layers whose
        kernels are matrices (Dense, Embedding, recurrent ones); others are left alone. `sparsity` is then that of the
        blocks.
      block_pooling: what a block's magnitude is: `avg` or `max` of its weights'.
      m_by_n: M and N, such as (2, 4): M of every N weights that follow each other along the inputs become zero, in
        Dense, Conv2D and recurrent layers, at the first step whatever the schedule says. `sparsity` must be M / N.
      policy: `xnnpack` prunes 1x1 convolutions alone, in models that XNNPACK's sparse kernels can run faster, which is
        checked; they need float32 or float16 and two thirds of zeros. None: all that can be pruned.
    """

    sparsity: float = 0.5
    schedule: str = "polynomial_decay"
    initial_sparsity: float = 0.0
    ramp: float = 0.75
    min_layer_share: float = 0.01
    layer_sparsity: Mapping[str, float] = dataclasses.field(default=Values({}), kw_only=True)
    begin_step: int | None = dataclasses.field(default=None, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    frequency: int | None = dataclasses.field(default=None, kw_only=True)
    power: float = dataclasses.field(default=3.0, kw_only=True)
    block_size: tuple[int, int] = dataclasses.field(default=(1, 1), kw_only=True)
    block_pooling: str = dataclasses.field(default="avg", kw_only=True)
    m_by_n: tuple[int, int] | None = dataclasses.field(default=None, kw_only=True)
    policy: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("sparsity", 0 < self.sparsity < 1, "above 0 and below 1")
        self.check_choice("schedule", SCHEDULES)
        self.check("initial_sparsity", 0 <= self.initial_sparsity <= self.sparsity, f"in [0, {self.sparsity}]")
        self.check("ramp", 0 < self.ramp <= 1, "above 0 and at most 1")
        self.check("min_layer_share", 0 <= self.min_layer_share < 1, "at least 0 and below 1")
        self.check_by_layer(
            "layer_sparsity",
            lambda value: 0 < value < 1,
            'a sparsity above 0 and below 1, such as {"Dense": 0.9}',
        )
        begin, end = self.begin_step, self.end_step
        self.check("begin_step", begin is None or begin >= 0, "at least 0, or None for the first")
        self.check("end_step", end is None or end > (begin or 0), f"above {begin or 0}, or None for the ramp's end")
        self.check(
            "frequency",
            self.frequency is None or self.frequency >= 1,
            "at least 1, or None to derive it from the number of steps",
        )
        self.check("power", self.power > 0, "above 0")
        self.check("block_size", min(self.block_size) >= 1, "height and width of at least 1, such as (1, 4)")
        self.check_choice("block_pooling", POOLINGS)
        self.check_choice("policy", POLICIES)
        if self.m_by_n is not None:
            self._check_m_by_n(*self.m_by_n)

    def _check_m_by_n(self, m: int, n: int) -> None:
        self.check("m_by_n", 0 < m < n, "(M, N) with M below N, such as (2, 4) for 2 zeros in every 4 weights")
        self.check("sparsity", abs(self.sparsity - m / n) < 1e-6, f"{m / n:g} where m_by_n is {self.m_by_n}")
        for name in (
            "layer_sparsity",
            "block_size",
            "schedule",
            "initial_sparsity",
            "begin_step",
            "end_step",
            "frequency",
        ):
            default = type(self).__dataclass_fields__[name].default
            self.check(name, getattr(self, name) == default, f"{default!r} where m_by_n is {self.m_by_n}")

    @property
    def token(self) -> str:
        """The step in a recipe's name, e.g. `prune80` or `prune50_2by4`: the final sparsity in percent, the pattern."""
        pattern = f"_{self.m_by_n[0]}by{self.m_by_n[1]}" if self.m_by_n else ""
        policy = f"_{self.policy}" if self.policy else ""
        named = ("sparsity", "m_by_n", "policy", "distillation", *RUN_WIDE)
        return f"prune{percent(self.sparsity)}{pattern}{policy}{self.distilled}" + deviation_tag(self, named)
