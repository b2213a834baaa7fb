"""A program with COLMAP's command line that does the work by pycolmap; strict about its options.

Tests copy it to where they need it. ``$FAKE_COLMAP`` (words) says how it should behave: ``cuda``,
``older`` (the names of options before COLMAP 3.12), ``fail=<command>``.
"""

import os
import sys
from pathlib import Path

BEHAVIOUR = os.environ.get("FAKE_COLMAP", "").split()
OLDER = "older" in BEHAVIOUR
EXTRACTION = "SiftExtraction" if OLDER else "FeatureExtraction"
MATCHING = "SiftMatching" if OLDER else "FeatureMatching"
OPTIONS = {
    "feature_extractor": [
        "database_path", "image_path", "image_list_path", "ImageReader.camera_model",
        "ImageReader.camera_params", "ImageReader.single_camera_per_image",
        "SiftExtraction.max_num_features", f"{EXTRACTION}.max_image_size",
        f"{EXTRACTION}.use_gpu", f"{EXTRACTION}.num_threads",
    ],
    "exhaustive_matcher": ["database_path", f"{MATCHING}.use_gpu", f"{MATCHING}.num_threads"],
    "point_triangulator": [
        "database_path", "image_path", "input_path", "output_path",
        "Mapper.ba_global_function_tolerance", "Mapper.tri_ignore_two_view_tracks",
    ],
    "image_undistorter": ["image_path", "input_path", "output_path", "output_type"],
    "patch_match_stereo": ["workspace_path"],
    "stereo_fusion": ["workspace_path", "output_path"],
}  # fmt: skip


def parsed(command: str, words: list[str]) -> dict[str, str]:
    values = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name[:2] != "--" or name[2:] not in OPTIONS[command]:
            sys.exit(f"ERROR: unrecognised option '{name}'")
        values[name[2:]] = value
    return values


def feature_extractor(o: dict[str, str]) -> None:
    import pycolmap

    options, reader = pycolmap.FeatureExtractionOptions(), pycolmap.ImageReaderOptions()
    options.max_image_size = int(o[f"{EXTRACTION}.max_image_size"])
    options.num_threads = int(o[f"{EXTRACTION}.num_threads"])
    options.sift.max_num_features = int(o["SiftExtraction.max_num_features"])
    reader.camera_model = o["ImageReader.camera_model"]
    reader.camera_params = o["ImageReader.camera_params"]
    assert o["ImageReader.single_camera_per_image"] == "1"
    pycolmap.extract_features(
        o["database_path"],
        o["image_path"],
        image_names=Path(o["image_list_path"]).read_text().split(),
        camera_mode=pycolmap.CameraMode.PER_IMAGE,
        reader_options=reader,
        extraction_options=options,
    )


def exhaustive_matcher(o: dict[str, str]) -> None:
    import pycolmap

    pycolmap.match_exhaustive(o["database_path"])


def point_triangulator(o: dict[str, str]) -> None:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.ba_global_function_tolerance = float(o["Mapper.ba_global_function_tolerance"])
    two = o.get("Mapper.tri_ignore_two_view_tracks", "1")
    options.triangulation.ignore_two_view_tracks = two == "1"
    model = pycolmap.Reconstruction(o["input_path"])
    paths = (o["database_path"], o["image_path"], o["output_path"])
    pycolmap.triangulate_points(model, *paths, options=options)


def image_undistorter(o: dict[str, str]) -> None:
    import pycolmap

    pycolmap.undistort_images(
        o["output_path"], o["input_path"], o["image_path"], output_type=o["output_type"]
    )


def patch_match_stereo(o: dict[str, str]) -> None:
    assert (Path(o["workspace_path"]) / "images").is_dir()
    (Path(o["workspace_path"]) / "stereo/depth_maps/made").touch()


def stereo_fusion(o: dict[str, str]) -> None:
    assert (Path(o["workspace_path"]) / "stereo/depth_maps/made").exists()
    header = "ply\nformat ascii 1.0\nelement vertex 3\n"
    header += "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    header += "".join(f"property uchar {n}\n" for n in ("red", "green", "blue"))
    points = "".join(f"{i} 0 0 0 0 1 {i} 20 30\n" for i in range(3))
    Path(o["output_path"]).write_text(header + "end_header\n" + points)
    Path(o["output_path"] + ".vis").write_bytes(b"which cameras see it")


def main() -> None:
    command, words = sys.argv[1], sys.argv[2:]
    if command == "help":
        print(f"COLMAP 3.{9 if OLDER else 12} -- Structure-from-Motion")
        print(f"(Commit 1 on 2024-01-01 {'with' if 'cuda' in BEHAVIOUR else 'without'} CUDA)")
    elif words == ["-h"]:
        print("\n".join(f"  --{name} arg (=0)" for name in OPTIONS[command]))
    elif f"fail={command}" in BEHAVIOUR:
        print("a line before it\nERROR: the disk is \xfcber-full", flush=True)
        sys.exit(1)
    else:
        globals()[command](parsed(command, words))


main()
