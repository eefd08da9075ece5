"""The context of the scene renderer, and its framebuffers."""

from __future__ import annotations

from typing import Any

from ocdit_core.errors import RenderingError


def open_context() -> Any:
    """Returns a new off-screen context of moderngl.

    Raises:
        RenderingError: there is no EGL driver on this machine, or moderngl is missing.
    """
    try:
        import moderngl

        options: dict[str, Any] = {"standalone": True, "backend": "egl"}
        return moderngl.create_context(**options)
    except ImportError as error:
        raise RenderingError("rendering needs the package moderngl: pip install moderngl") from error
    except Exception as error:  # moderngl and its loader raise plain Exception for a missing driver
        reason = " ".join(str(error).split())
        raise RenderingError(
            f"no off-screen OpenGL ({reason}); on Ubuntu and Debian: apt-get install libegl1 libgl1-mesa-dri"
        ) from error


def make_frame(gl: Any, kind: str, size: tuple[int, int]) -> dict[str, Any]:
    """Returns framebuffers and the textures that they draw into, by name.

    Args:
        gl: moderngl's context.
        kind: "silhouettes" (sheet), "preview" (linear, seen), or "view" (picture, seen, and what these are made from).
        size: rows and columns in pixels.
    """
    pixels = size[::-1]
    made: dict[str, Any] = {}
    if kind == "silhouettes":
        made["sheet"] = gl.texture(pixels, 1)
        made["sheet only"] = gl.framebuffer([made["sheet"]])
        return made
    made["depth"] = gl.depth_renderbuffer(pixels)
    made["seen"] = gl.texture(pixels, 2, dtype="f4")
    if kind == "preview":
        made["linear"] = gl.texture(pixels, 4, dtype="f2")
        made["all"] = gl.framebuffer([made["linear"], made["seen"]], made["depth"])
        return made
    for name, channels, dtype in (
        ("normal", 4, "f2"),
        ("colour", 4, "f1"),
        ("sky", 4, "f2"),
        ("shaded", 4, "f1"),
        ("picture", 4, "f1"),
    ):
        made[name] = gl.texture(pixels, channels, dtype=dtype)
    made["shaded"].repeat_x = made["shaded"].repeat_y = False
    made["surfaces"] = gl.framebuffer([made[k] for k in ("seen", "normal", "colour", "sky")], made["depth"])
    made["light"] = gl.framebuffer([made["shaded"]], made["depth"])
    made["light"].depth_mask = False  # it only asks where objects are
    made["room"] = gl.framebuffer([made["shaded"], made["seen"]], made["depth"])
    made["smooth"] = gl.framebuffer([made["picture"]])
    return made
