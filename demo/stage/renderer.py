"""Offscreen pictures of meshes with panda3d's software renderer: no GPU, no display, no lights.

It shares no code with this project's rasteriser, which makes it a fair judge of its conventions.
"""

from __future__ import annotations

import numpy as np
from panda3d import core

from demo.stage.meshes import Mesh
from demo.stage.rig import Pinhole

core.loadPrcFileData("", "load-display p3tinydisplay\naux-display p3tinydisplay")
core.loadPrcFileData("", "window-type offscreen\naudio-library-name null\nnotify-level error")

# The software renderer draws everything this much too far left and up, in its own (fine) pixels, as
# measured with small markers (tests/demo); the lens is moved against it.
_RASTER_SHIFT = 0.26

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgba", "u1", 4)])


class Painter:
    """Draws named meshes through `Pinhole` cameras, ``oversample`` times finer, then averages."""

    def __init__(self, width: int, height: int, oversample: int = 4) -> None:
        """Opens the offscreen buffer; RuntimeError if the software renderer cannot be loaded."""
        self.width, self.height, self.oversample = width, height, oversample
        self._engine = core.GraphicsEngine.get_global_ptr()
        self._pipe = core.GraphicsPipeSelection.get_global_ptr().make_pipe(
            "TinyOffscreenGraphicsPipe"
        )
        if self._pipe is None:
            raise RuntimeError("panda3d's software renderer (p3tinydisplay) cannot be loaded")
        self._buffer = self._open()
        self._picture = core.Texture()
        self._buffer.add_render_texture(self._picture, core.GraphicsOutput.RTM_copy_ram)
        self._root = core.NodePath("root")
        self._root.set_two_sided(True)
        self._lens = core.PerspectiveLens()
        self._lens.set_near_far(0.5, 30.0)
        self._camera = self._root.attach_new_node(core.Camera("camera", self._lens))
        self._buffer.make_display_region().set_camera(self._camera)
        self._nodes: dict[str, tuple[core.NodePath, core.GeomVertexData]] = {}

    def _open(self) -> core.GraphicsOutput:
        properties = core.FrameBufferProperties()
        properties.set_rgba_bits(8, 8, 8, 8)
        properties.set_depth_bits(24)
        size = core.WindowProperties.size(
            self.width * self.oversample, self.height * self.oversample
        )
        flags = core.GraphicsPipe.BF_refuse_window
        buffer = self._engine.make_output(self._pipe, "demo", 0, properties, size, flags)
        if buffer is None:
            raise RuntimeError("panda3d's software renderer offers no offscreen buffer")
        buffer.set_clear_color((0, 0, 0, 1))
        return buffer

    def show(self, name: str, mesh: Mesh | None) -> None:
        """Puts ``mesh`` in the scene, in place of what ``name`` was before; None removes it."""
        if mesh is None:
            if name in self._nodes:
                self._nodes.pop(name)[0].remove_node()
            return
        known = self._nodes.get(name)
        if known is None or known[1].get_num_rows() != len(mesh.vertices):
            self.show(name, None)
            self._nodes[name] = self._add(name, mesh)
        rows = np.empty(len(mesh.vertices), _VERTEX)
        rows["xyz"] = mesh.vertices
        rows["rgba"][:, :3] = np.round(mesh.colors * 255)
        rows["rgba"][:, 3] = 255
        array = self._nodes[name][1].modify_array(0)
        memoryview(array).cast("B")[:] = rows.tobytes()

    def _add(self, name: str, mesh: Mesh) -> tuple[core.NodePath, core.GeomVertexData]:
        array = core.GeomVertexArrayFormat()
        array.add_column("vertex", 3, core.Geom.NT_float32, core.Geom.C_point)
        array.add_column("color", 4, core.Geom.NT_uint8, core.Geom.C_color)
        layout = core.GeomVertexFormat.register_format(core.GeomVertexFormat(array))
        data = core.GeomVertexData(name, layout, core.Geom.UH_dynamic)
        data.unclean_set_num_rows(len(mesh.vertices))
        triangles = core.GeomTriangles(core.Geom.UH_static)
        triangles.set_index_type(core.Geom.NT_uint32)
        indices = triangles.modify_vertices()
        indices.unclean_set_num_rows(mesh.triangles.size)
        memoryview(indices).cast("B")[:] = mesh.triangles.astype("<u4").tobytes()
        geometry = core.Geom(data)
        geometry.add_primitive(triangles)
        node = core.GeomNode(name)
        node.add_geom(geometry)
        node.set_bounds(core.OmniBoundingVolume())
        node.set_final(True)
        return self._root.attach_new_node(node), node.modify_geom(0).modify_vertex_data()

    def picture(self, camera: Pinhole) -> np.ndarray:
        """The scene through ``camera``, float (height, width, 3) in [0, 1], not yet quantised."""
        self._aim(camera)
        self._engine.render_frame()
        k = self.oversample
        raw = np.frombuffer(self._picture.get_ram_image_as("RGB"), np.uint8)
        fine = raw.reshape(self.height, k, self.width, k, 3)[::-1, ::-1]
        return fine.mean(axis=(1, 3), dtype=np.float64) / 255.0

    def _aim(self, camera: Pinhole) -> None:
        """Panda cameras look along +y with z up; ours look along +z with y down."""
        right, down, forward = camera.rotation.T
        rows = [(*axis, 0.0) for axis in (right, forward, -down)] + [(*camera.center, 1.0)]
        self._camera.set_mat(core.LMatrix4(*[float(x) for row in rows for x in row]))
        size = np.array([self.width, self.height]) / camera.focal  # film at focal length 1
        self._lens.set_film_size(*(float(x) for x in size))
        self._lens.set_focal_length(1.0)
        shift = _RASTER_SHIFT / (self.oversample * camera.focal)
        self._lens.set_film_offset(-shift, shift)
