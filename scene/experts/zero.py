"""The zero expert: it stays put.

In a mixture it lets the router hold a Gaussian still; alone it is a static scene that goes through
the same code.
"""

from __future__ import annotations

from scene.experts.base import Deformation, Expert, Moment
from scene.gaussian_model import Canonical
from scene.router import ATTRIBUTES


class ZeroExpert(Expert):
    """No deltas, no parameters."""

    name = "zero"
    attributes = frozenset(ATTRIBUTES)  # of all it says that they stay as they are

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`: nothing is deformed, so nothing is computed."""
        return Deformation()
