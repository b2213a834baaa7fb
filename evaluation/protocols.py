"""How published numbers are measured, data set by data set: one table, and what differs from it.

The facts are those of the published programs. Where programs differ for one data set, the protocol
follows one of them and says how the others differ; every variant is reported beside it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from utils.errors import UserError

SSIMS = {
    "ssim": "11x11 Gaussian window, sigma 1.5, zeros beyond the border, data range 1",
    "ssim_uniform7": "7x7 mean window inside the image, sample covariance, data range 1",
    "ssim_uniform7_range2": "the same with data range 2",
    "ms_ssim": "five scales, 11x11 Gaussian window inside the image, data range 1",
}
SSIM_WINDOWS = {"ssim": 11, "ssim_uniform7": 7, "ssim_uniform7_range2": 7, "ms_ssim": 11}


@dataclass(frozen=True)
class Protocol:
    """What is measured, and on which pictures.

    Attributes:
        name: on the command line.
        kinds: of scenes (`Scene.kind`) that it is the default for.
        cameras: which are held out, in words.
        test_cameras: their names, where all scenes have the same; None: not checked.
        frames: which, in words.
        first_frame: of the scene's clip, where all scenes have the same; None: not checked.
        frame_count: of each held-out camera; further ones are left out; None: all.
        size: (width, height) in pixels; None: that of the files.
        by_files: whether the held-out pictures are all that the scene's files hold out, and of the
            files' size where no other is given; else they are as a run has them.
        folder: of the files, inside the scene's; None: not checked.
        pictures: what is compared, beside size: scale of the files, background.
        background: RGB in [0, 1] behind transparent ground truth; None: there is none.
        eight_bit: whether renders are rounded to 8 bits first, as in a PNG.
        ssim: the one reported as SSIM, a key of `SSIMS`.
        also: further keys of `SSIMS`.
        lpips_net: the network of the one reported as LPIPS.
        lpips_range: what that network is fed: ``legacy``, images in [0, 1], or ``correct``,
            in [-1, 1], which it was trained with.
        crop: pixels left out along every side.
        source: the programs that measure so.
        differing: how other programs measure, or what is not known.
    """

    name: str
    kinds: tuple[str, ...]
    cameras: str
    test_cameras: tuple[str, ...] | None
    frames: str
    first_frame: int | None
    frame_count: int | None
    size: tuple[int, int] | None
    by_files: bool
    folder: str | None
    pictures: str
    background: tuple[float, float, float] | None
    eight_bit: bool
    ssim: str
    also: tuple[str, ...]
    lpips_net: str
    lpips_range: str
    crop: int
    source: str
    differing: str


PROTOCOLS = (
    Protocol(
        name="n3v",
        kinds=("n3v",),
        cameras="the first, cam00",
        test_cameras=("cam00",),
        frames="0 to 299",
        first_frame=0,
        frame_count=300,
        size=(1352, 1014),
        by_files=False,
        folder=None,
        pictures="half of 2704x2028",
        background=None,
        eight_bit=False,
        ssim="ssim",
        also=("ssim_uniform7", "ssim_uniform7_range2", "ms_ssim"),
        lpips_net="alex",
        lpips_range="legacy",
        crop=0,
        source="MoDE's render_emb.py",
        differing="MoDE does not clamp renders to [0, 1] before measuring; here they are clamped. "
        "4DGaussians, E-D3DGS and Grid4D read 8-bit PNGs; 4DGaussians reports LPIPS of both "
        "networks, MS-SSIM and D-SSIM = (1 - MS-SSIM) / 2; Grid4D LPIPS of VGG, fed [0, 1] too. "
        "Ex4DGS and STG measure floats in memory; Ex4DGS adds scikit-image's SSIM with data range "
        "1 and 2 (its window taken to be that package's default), from which two D-SSIMs that "
        "differ by a factor of about two are published. STG trains a model for 50 frames each, in "
        "MoE-GS for 150. E-D3DGS leaves camera 13 out of coffee_martini's training and measures "
        "flame_salmon_1 as four clips of 300 frames; the others take its first 300.",
    ),
    Protocol(
        name="technicolor",
        kinds=("technicolor",),
        cameras="cam10",
        test_cameras=("cam10",),
        frames="Birthday, Train 151 to 200; Fabien, Theater 51 to 100; Painter 100 to 149",
        first_frame=None,
        frame_count=50,
        size=(2048, 1088),
        by_files=False,
        folder=None,
        pictures="full size",
        background=None,
        eight_bit=False,
        ssim="ssim",
        also=("ssim_uniform7", "ssim_uniform7_range2"),
        lpips_net="alex",
        lpips_range="legacy",
        crop=0,
        source="Ex4DGS's evaluation, which MoE-GS builds on",
        differing="STG measures floats in memory as well; E-D3DGS reads 8-bit PNGs. Ex4DGS reports "
        "LPIPS of AlexNet and of VGG, and scikit-image's SSIM with data range 1 and 2 (its window "
        "taken to be that package's default). Which of the two networks MoE-GS's table has is not "
        "known; AlexNet is taken.",
    ),
    Protocol(
        name="hypernerf",
        kinds=("hypernerf",),
        cameras="the other one of the pair (vrig), or pictures between those trained on",
        test_cameras=None,
        frames="val_ids of dataset.json; without any, every fourth from the third",
        first_frame=None,
        frame_count=None,
        size=None,
        by_files=True,
        folder="rgb/2x",
        pictures="rgb/2x, half of the photographs' size",
        background=None,
        eight_bit=True,
        ssim="ssim",
        also=("ms_ssim",),
        lpips_net="alex",
        lpips_range="legacy",
        crop=0,
        source="4DGaussians' metrics script",
        differing="It reports LPIPS of VGG and of AlexNet, and MS-SSIM as well. E-D3DGS and Grid4D "
        "read 8-bit PNGs too; Grid4D has LPIPS of VGG from another package, fed [0, 1] too. "
        "Masks of what both cameras see (covisible) are optional there and not used here.",
    ),
    Protocol(
        name="dnerf",
        kinds=("blender",),
        cameras="those of transforms_test.json",
        test_cameras=None,
        frames="all of transforms_test.json",
        first_frame=None,
        frame_count=None,
        size=(800, 800),
        by_files=True,
        folder=None,
        pictures="over white",
        background=(1.0, 1.0, 1.0),
        eight_bit=True,
        ssim="ssim",
        also=("ms_ssim",),
        lpips_net="vgg",
        lpips_range="legacy",
        crop=0,
        source="4DGaussians' metrics script",
        differing="It reports LPIPS of AlexNet, and MS-SSIM as well. Grid4D lays pictures over "
        "black, takes them at the size of their files, and has LPIPS of VGG, fed [0, 1] too. "
        "Users report that lego's test split does not match what is trained on.",
    ),
    Protocol(
        name="panoptic",
        kinds=("panoptic",),
        cameras="those of test_meta.json",
        test_cameras=None,
        frames="all of test_meta.json",
        first_frame=None,
        frame_count=None,
        size=None,
        by_files=True,
        folder=None,
        pictures="the files' size",
        background=None,
        eight_bit=True,
        ssim="ssim",
        also=("ms_ssim",),
        lpips_net="alex",
        lpips_range="legacy",
        crop=0,
        source="4DGaussians' reader and metrics script",
        differing="Renders are over black there; the photographs have no background. It reports "
        "LPIPS of VGG and of AlexNet; which of them a table has is not known.",
    ),
    Protocol(
        name="render",
        kinds=(),
        cameras="the run's test views",
        test_cameras=None,
        frames="all",
        first_frame=None,
        frame_count=None,
        size=None,
        by_files=False,
        folder=None,
        pictures="as they are",
        background=None,
        eight_bit=False,
        ssim="ssim",
        also=(),
        lpips_net="alex",
        lpips_range="correct",
        crop=0,
        source="this toolkit's render_emb.py and render_hash.py",
        differing="The default for scenes and folders that no other protocol is for.",
    ),
)


def find_protocol(name: str) -> Protocol:
    """The protocol called ``name``.

    Raises:
        UserError: there is none; the line names the nearest.
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"--protocol {name}: unknown; {hint}there are {', '.join(known)}")


def protocol_of_kind(kind: str) -> Protocol:
    """The protocol for scenes of a kind; ``render`` where there is none of its own."""
    return next((p for p in PROTOCOLS if kind in p.kinds), find_protocol("render"))


def protocol_table(protocols: tuple[Protocol, ...] = PROTOCOLS) -> str:
    """All protocols as Markdown: a table of settings, what SSIM is, and sources with differences.

    What ``--list_protocols`` prints and ``docs/evaluation.md`` shows.
    """
    heads = ["", *(f"`{p.name}`" for p in protocols)]
    rows = [[title, *(cell(p) for p in protocols)] for title, cell in _ROWS]
    lines = [_row(heads), _row(["---"] * len(heads)), *(_row(row) for row in rows), ""]
    lines += [f"- `{key}`: {text}" for key, text in SSIMS.items()]
    for p in protocols:
        lines += ["", f"**{p.name}**, after {p.source}. {p.differing}"]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_ROWS = (
    ("held-out cameras", lambda p: p.cameras),
    ("frames", lambda p: p.frames),
    ("size", lambda p: f"{p.size[0]}x{p.size[1]}, {p.pictures}" if p.size else p.pictures),
    ("values", lambda p: "8-bit" if p.eight_bit else "float, clamped to [0, 1]"),
    ("SSIM", lambda p: f"`{p.ssim}`"),
    ("besides", lambda p: ", ".join(f"`{key}`" for key in p.also) or "none"),
    ("LPIPS", lambda p: f"{p.lpips_net}, fed {RANGES[p.lpips_range]}"),
    ("crop", lambda p: f"{p.crop} pixels" if p.crop else "none"),
)
RANGES = {"legacy": "[0, 1]", "correct": "[-1, 1]"}
