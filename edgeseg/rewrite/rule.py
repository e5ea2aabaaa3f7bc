"""What a rule is: a kind of rewrite as data. The rules themselves are in edgeseg.rewrite.rules, one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from edgeseg.rewrite.moments import DEEPEST, Moments
from edgeseg.rewrite.values import Choice, Conv, Fitted


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of rewrite, as data.

    choices(conv, align): what the layer may become, ranks being multiples of `align` where that makes sense; only what
    needs fewer multiplications than the layer itself. Empty if the rule does not apply to such a convolution.
    fit(choice, conv, moments, weight, steps): the weights; `weight` float32 (Co, Ci, kh, kw) to start from, `steps`
    of L-BFGS over what has no closed form (0: the start alone, with a closed-form last factor).
    mixes: whether it begins with a 1x1 convolution of all inputs, so that mixtures of these are enough to fit it to.
    """

    name: str
    says: str  # one line for people
    choices: Callable[[Conv, int], Sequence[Choice]]
    fit: Callable[[Choice, Conv, Moments, Tensor, int], Fitted]
    mixes: bool = False

    def offered(self, conv: Conv, align: int) -> Sequence[Choice]:
        """Its choices, as far as they can be fitted: a convolution of more than DEEPEST products is only seen through
        mixtures of its inputs."""
        return self.choices(conv, align) if self.mixes or conv.depth <= DEEPEST else ()
