"""D-NeRF, bouncingballs: the default recipe, whose rows of time are for its 150 views."""

_base_ = "default.py"
