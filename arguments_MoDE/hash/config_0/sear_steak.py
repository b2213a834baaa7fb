"""As `dynerf/config_rot_0` with the hash-grid expert: the commands train and render by both."""

_base_ = "../../dynerf/config_rot_0/sear_steak.py"

ModelHiddenParams = dict(experts=["hexplane", "hash"])
