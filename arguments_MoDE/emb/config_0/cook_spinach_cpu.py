"""The same as `dynerf/config_rot_0`: the published commands train and render by both."""

_base_ = "../../dynerf/config_rot_0/cook_spinach_cpu.py"
