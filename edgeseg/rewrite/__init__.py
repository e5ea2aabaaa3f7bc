"""The stage that turns a trained network into a cheaper one of the same accuracy. Needs torch.

    capture → exact → plan → (a choice of options) → rewritten → rescaled

Exact rewrites change nothing but the work. For the others every layer is fitted to what it does on real frames; what
each choice would cost in accuracy is predicted without labels; and the layers chosen are replaced one after the other,
each repairing what those before it did wrong.
"""

from __future__ import annotations
