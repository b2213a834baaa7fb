"""D-NeRF, standup: the default recipe, whose rows of time are for its 150 views."""

_base_ = "default.py"
