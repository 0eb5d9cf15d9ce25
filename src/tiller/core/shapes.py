"""Names for the shapes of tensors; checked at run time in tests (jaxtyping, beartype), not in use.

Within one signature the same name means the same numbers.
"""

from __future__ import annotations

from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Candidates = Shaped[Tensor, "n *shape"]  # z of any space
Points = Float[Tensor, "n *shape"]  # z of a Continuous space, its gradients, moves and moments
Choices = Int64[Tensor, "n positions"]  # z of a Discrete space
Flat = Float[Tensor, "n d"]  # z of a space whose candidates are vectors
