"""PanopticSports (27 training cameras around a dome, 150 frames of 640x360).

No published MoDE recipe: Neural 3D Video's, changed where the comments say so.
"""

_base_ = "../dynerf/config_rot_0/default.py"

ModelParams = dict(
    duration=150,
    time_convention="full",  # there is no published number to match
    white_background=False,  # the studio is dark where no point of the cloud is
    # The cameras sit in the dome's wall: what is drawn of it between them covers the view of a
    # camera that was not there. Training cameras see points of the cloud from a depth of 1.08 on,
    # single ones at 0.05.
    near_plane=0.8,
)

OptimizationParams = dict(
    batch_size=4,
    camera_color=True,  # the dome's cameras differ in colour response
)

ModelHiddenParams = dict(
    kplanes_config={"resolution": [64, 64, 64, 75]},  # half of the frames, as for Neural 3D Video
)
