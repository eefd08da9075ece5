"""The page, in Gradio: what a visitor sees and clicks."""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before gradio is imported: nothing is sent to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI

from ocdit_core.app.studio import Studio, Visitor
from ocdit_core.commands.options import counted
from ocdit_core.errors import OcditError
from ocdit_core.inference.results import Segmentation
from ocdit_core.objects.gallery import length
from ocdit_core.objects.meshes import UNITS

logger = logging.getLogger(__name__)

TITLE = "Segment objects from their CAD models"
MAX_CHOSEN = 16
"""Most objects that are looked for without being chosen."""
CLICKS = ("on it", "not on it", "box")
_IN_SCRATCH = re.compile(re.escape(tempfile.gettempdir()) + r"/(\S+/)?")
"""Folders of dropped files, which messages leave out: the visitor knows the names of the files only."""
# No fonts from the internet.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
HELP = """\
1. Choose or drop an image. 2. Tick the objects to look for, or drop a CAD file or photos of a new one. 3. To say which
one you mean, or where one was missed, click on it in the result.
"""


def make_page(studio: Studio, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page.

    Args:
        studio: does the work.
        examples: example images.
    """
    names = list(studio.library.object_ids)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        visitor = gr.State(Visitor(library=studio.library), delete_callback=studio.leave, time_to_live=24 * 3600)
        gr.Markdown(f"# {TITLE}\n{HELP}")
        with gr.Row():
            with gr.Column():
                photo = gr.Image(
                    label="Image",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=280,
                    elem_id="photo",
                )
                shelf = gr.Gallery(
                    [str(path) for path in examples],
                    columns=5,
                    height=180,
                    allow_preview=False,
                    label="Example images",
                    visible=bool(examples),
                    elem_id="examples",
                )
                targets = gr.Dropdown(
                    names, value=names[:MAX_CHOSEN], multiselect=True, label="Objects to look for", elem_id="targets"
                )
                looks = gr.Gallery(
                    studio.looks(studio.library),
                    columns=5,
                    height=220,
                    allow_preview=False,
                    label="Objects",
                    elem_id="looks",
                )
                with gr.Accordion("Add an object", open=False):
                    text = "A CAD file, with its materials and textures, or photos on a plain background"
                    files = gr.File(label=text, file_count="multiple", elem_id="files")
                    with gr.Row():
                        name = gr.Textbox(label="Name", placeholder="that of the file", elem_id="name")
                        unit = gr.Dropdown(["auto", *UNITS], value="auto", label="Unit of the CAD file")
                    add = gr.Button("Add this object", elem_id="add")
                threshold = gr.Slider(0, 1, studio.segmenter.settings.score_threshold, step=0.05, label="Lowest score")
            with gr.Column():
                status = gr.Markdown("Choose an image.", elem_id="status")
                result = gr.Image(
                    label="Result", interactive=False, format="png", buttons=["fullscreen"], elem_id="result"
                )
                with gr.Row():
                    pointed = gr.Dropdown(names, value=names[0], label="A click is for", elem_id="pointed")
                    kind = gr.Radio(CLICKS, value=CLICKS[0], label="and marks a point / a corner", elem_id="kind")
                with gr.Row():
                    again = gr.Button("Segment", variant="primary", elem_id="segment")
                    clear = gr.Button("Forget all clicks", elem_id="clear")
                table = gr.Markdown(elem_id="table")
                with gr.Accordion("Download, uncertainty, time, denoising", open=False):
                    download = gr.DownloadButton("Download masks (PNG and COCO JSON)", elem_id="download")
                    uncertainty = gr.Image(label="Uncertainty: white where a pixel is undecided", interactive=False)
                    seconds = gr.Markdown()
                    denoise = gr.Button("Show the denoising steps", elem_id="denoise")
                    steps = gr.Image(
                        label="Coarse masks, from noise to the last step", interactive=False, elem_id="steps"
                    )
        with gr.Accordion("Follow objects through a video", open=False), gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload", "webcam"], elem_id="video")
                follow = gr.Button("Follow the objects", elem_id="follow")
            tracked = gr.Video(label="Masks and ids", interactive=False, autoplay=True, elem_id="tracked")

        # The file as it was dropped: `Visitor.open` says what is wrong with it. Gradio forgets this where an event
        # changes the component.
        photo.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
        shown = [visitor, status, result, table, uncertainty, seconds, steps]

        def show(visitor: Visitor, message: str) -> list[Any]:
            found = visitor.result
            return [
                visitor,
                message,
                visitor.drawing(),
                "" if found is None else _instances(found),
                None if found is None else found.uncertainty,
                "" if found is None else _seconds(found),
                None,
            ]

        def segment(visitor: Visitor, targets: list[str], threshold: float) -> list[Any]:
            found = studio.segment(visitor, targets, threshold)
            message = f"{counted(len(found.instances), 'object')} found in {found.timings['total']:.1f} s."
            seen = {one.object_id for one in found.instances}
            missed = sorted({one.object_id for one in visitor.prompts if one.places} - seen)
            if missed:
                message += f" Nothing there looks like {', '.join(missed)}."
            visitor.message = _plain(message)
            return show(visitor, visitor.message)

        def open_image(visitor: Visitor, path: str | None, targets: list[str], threshold: float) -> list[Any]:
            # Gradio tells of some images twice.
            if path is None or path != visitor.path or visitor.result is None:
                visitor.open(path)
            if path is None:
                return show(visitor, "Choose an image.")
            if visitor.result is not None:
                return show(visitor, visitor.message)
            return segment(visitor, targets, threshold)

        def open_example(visitor: Visitor, targets: list[str], threshold: float, event: gr.SelectData) -> list[Any]:
            return open_image(visitor, str(examples[event.index]), targets, threshold)

        def click(
            visitor: Visitor, targets: list[str], threshold: float, name: str, kind: str, event: gr.SelectData
        ) -> list[Any]:
            x, y = event.index
            if visitor.click((round(x), round(y)), kind, name):
                return segment(visitor, targets, threshold)
            return show(visitor, "Click on the opposite corner of the box.")

        def forget(visitor: Visitor, targets: list[str], threshold: float) -> list[Any]:
            visitor.prompts, visitor.corner = [], None
            return segment(visitor, targets, threshold)

        def add_object(visitor: Visitor, files: list[str] | None, name: str, unit: str, chosen: list[str]) -> list[Any]:
            made = studio.add_object(visitor, files or [], name, unit)
            known = list(visitor.library.object_ids)
            return [
                visitor,
                f"{_plain(made)} is added, {length(visitor.library[made].diameter)} across. It is yours alone, "
                "until you leave; `ocdit render` keeps objects for good.",
                gr.Dropdown(known, value=[*chosen, made]),
                gr.Dropdown(known, value=made),
                studio.looks(visitor.library),
                None,
                "",
            ]

        def follow_objects(
            visitor: Visitor, path: str | None, targets: list[str], progress: gr.Progress = PROGRESS
        ) -> list[Any]:
            if path is None:
                raise OcditError("choose or drop a video first")
            return ["The objects are followed.", studio.track(visitor, path, targets, progress)]

        def pack(visitor: Visitor) -> list[Any]:
            return ["The masks are packed.", studio.download(visitor)]

        def show_steps(visitor: Visitor) -> list[Any]:
            return ["The denoising steps are drawn.", studio.steps(visitor)]

        # One at a time: the network uses all cores.
        turn = {"concurrency_id": "network", "concurrency_limit": 1}
        chosen = [visitor, targets, threshold]
        opened = [visitor, photo, targets, threshold]
        listen(photo.change, open_image, opened, shown, status, api_name="open", **turn)
        listen(shelf.select, open_example, chosen, shown, status, **turn)
        listen(again.click, segment, chosen, shown, status, **turn)
        listen(clear.click, forget, chosen, shown, status, **turn)
        listen(result.select, click, [*chosen, pointed, kind], shown, status, **turn)
        added = [visitor, status, targets, pointed, looks, files, name]
        listen(add.click, add_object, [visitor, files, name, unit, targets], added, status, **turn)
        listen(follow.click, follow_objects, [visitor, video, targets], [status, tracked], status, **turn)
        listen(denoise.click, show_steps, [visitor], [status, steps], status, **turn)
        listen(download.click, pack, [visitor], [status, download], status)
    return page


PROGRESS = gr.Progress()


def listen(
    event: Callable[..., Any],
    function: Callable[..., list[Any]],
    inputs: list[Any],
    outputs: list[Any],
    status: gr.Markdown,
    **options: Any,
) -> Any:
    """Call `function` on an event; where it fails, only the status line changes: it says why."""

    @functools.wraps(function)
    def guarded(*values: Any, **more: Any) -> dict[Any, Any]:
        try:
            return dict(zip(outputs, function(*values, **more), strict=True))
        except OcditError as error:
            return {status: f"**{_plain(_IN_SCRATCH.sub('', str(error)))}**"}
        except Exception as error:
            logger.exception("the page")
            return {status: f"**Something went wrong here: {_plain(f'{type(error).__name__}: {error}')}**"}

    return event(guarded, inputs, outputs, **options)


def _instances(found: Segmentation) -> str:
    """Return a table of the instances and of the targets that were not found, in Markdown."""
    rows = [(one.object_id, f"{one.score:.2f}", ", ".join(map(str, one.box))) for one in found.instances]
    seen = {one.object_id for one in found.instances}
    rows += [(name, "not found", "") for name in found.target_ids if name not in seen]
    return "\n".join(["| object | score | box (x, y, width, height) |", "|---|---|---|", *map(_row, rows)])


def _seconds(found: Segmentation) -> str:
    """Return a table of the time by stage, in Markdown."""
    rows = [(stage, f"{seconds:.3f}") for stage, seconds in found.timings.items()]
    return "\n".join(["| stage | seconds |", "|---|---|", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Return a line that Markdown shows as it is: names of objects and files may hold its special characters."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def server_of(studio: Studio, examples: Sequence[Path]) -> uvicorn.Server:
    """Return a server of the page; `run(sockets=[...])` serves it.

    Args:
        studio: does the work.
        examples: example images.
    """
    # Not `launch`, which gives up where the page does not answer within three seconds.
    page = make_page(studio, examples).queue(max_size=100)
    app = gr.mount_gradio_app(
        FastAPI(),
        page,
        path="/",
        theme=THEME,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        allowed_paths=[str(path) for path in examples],
        max_file_size="500mb",
    )
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
