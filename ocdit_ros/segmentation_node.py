"""The lifecycle node `ocdit_segmentation` with its services; docs/ros.md describes its interface."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_ros import interruptible_imports

with interruptible_imports():
    from diagnostic_msgs.msg import DiagnosticArray
    from rcl_interfaces.msg import SetParametersResult
    from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
    from rclpy.clock import Clock, ClockType
    from rclpy.impl.implementation_singleton import rclpy_implementation
    from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
    from rclpy.parameter import Parameter
    from rclpy.qos import QoSProfile
    from std_msgs.msg import Header
    from vision_msgs.msg import VisionInfo

    from ocdit_core.errors import OcditError, UnknownObjectError
    from ocdit_ros import converter, diagnostics, parameters, topics
    from ocdit_ros.camera import Calibration, Camera, Frame, lifted
    from ocdit_ros.depth import Depth, read_depth
    from ocdit_ros.messages import instance_numbers, number
    from ocdit_ros.network import Network, load_segmenter
    from ocdit_ros.objects import LibraryEditor, numbers_of
    from ocdit_ros.space import Space
    from ocdit_ros.spinning import run
    from ocdit_ros.worker import Result, StaleFrameError, Worker, describe

if TYPE_CHECKING:
    import numpy as np

    from ocdit_core.inference.results import Segmentation

PROCESS = f"{socket.gethostname()}, process {os.getpid()}"
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
SERVICE_QOS = QoSProfile(depth=100)

NAMESAKES_UNTIL = 10.0
"""Seconds from the start in which the node ends when an older node has its name."""


def load_library(settings: parameters.Settings) -> Any:
    """Open the object library; raises LibraryError."""
    from ocdit_core import ObjectLibrary

    return ObjectLibrary(settings.library)


class SegmentationNode(LifecycleNode):
    """The segmenter as a lifecycle node; `library_loader` and `segmenter_loader` load what the parameters name."""

    def __init__(
        self,
        *,
        library_loader: Callable[[parameters.Settings], Any] = load_library,
        segmenter_loader: Callable[[parameters.Settings], Any] = load_segmenter,
    ):
        self._group = ReentrantCallbackGroup()
        super().__init__("ocdit_segmentation")
        self._load_library = library_loader
        self._load_segmenter = segmenter_loader
        # Held while settings change.
        self._lock = threading.RLock()
        self._worker: Worker | None = None
        self._loaded = False
        self._editor: LibraryEditor | None = None
        # Numbers of objects by name: of the library, and all that a frame can show, of removed ones too.
        self._known: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._model_name = self._device = ""
        self._recommended_threshold = 0.0
        self._track_numbers, self._frame_numbers = instance_numbers(unique=True), instance_numbers(unique=False)
        self._cameras: dict[str, Camera] = {}
        self._space: Space | None = None
        self._info: topics.Publishers = {}  # publishers of the latched topics
        self._monitor = diagnostics.Monitor()
        self._enabled = True
        parameters.declare(self)
        self._settings = parameters.read(self)
        for name, callback in {
            "set_target_objects": self._on_set_target_objects,
            "list_objects": self._on_list_objects,
            "add_object": self._on_add_object,
            "remove_object": self._on_remove_object,
            "reload_library": self._on_reload_library,
            "segment": self._on_segment,
            "segment_prompted": self._on_segment_prompted,
            "enable": self._on_enable,
            "reset_tracking": self._on_reset_tracking,
        }.items():
            kind = topics.SERVICES[name].kind
            self.create_service(kind, f"~/{name}", callback, qos_profile=SERVICE_QOS, callback_group=self._group)
        self._log_handler = _LogHandler(self._on_warning)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._instance, self._started = uuid.uuid4().hex, time.monotonic()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10, callback_group=self._group)
        # Steady: ROS time may stand still or jump.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._report, callback_group=self._group, clock=steady)
        if self._settings.autostart:
            self._autostart_timer = self.create_timer(
                0.01, self._autostart, callback_group=MutuallyExclusiveCallbackGroup(), clock=steady
            )

    @property
    def default_callback_group(self) -> CallbackGroup:
        """The group of the services that every node has: they too answer while weights are loaded."""
        return self._group

    @property
    def state(self) -> str:
        """The lifecycle state's label: unconfigured, inactive, active, finalized, or a transition."""
        return str(self._state_machine.current_state[1])

    @property
    def score_threshold(self) -> float:
        """The threshold in force: the parameter, or the model's recommendation."""
        threshold = self._settings.score_threshold
        return threshold if threshold >= 0 else self._recommended_threshold

    @property
    def _numbers(self) -> Iterator[int]:
        # Of the node, not of a network: with tracking, no number is used twice while the node lives.
        return self._track_numbers if self._settings.tracking else self._frame_numbers

    def close(self) -> None:
        """Stop the worker, if its frame ends soon; the node can be destroyed afterwards."""
        self._log_handler.close()
        if self._worker is not None:
            self._worker.stop(timeout=0.5)

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    # Lifecycle transitions.

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:  # noqa: N802
        """Refuse an impossible transition, as rclpy does from Kilted on; in Humble and Jazzy it would end the node."""
        try:
            result: TransitionCallbackReturn = super()._LifecycleNodeMixin__change_state(transition_id)  # type: ignore[misc]
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f"transition {transition_id} is refused: {error}")
            return TransitionCallbackReturn.ERROR
        return result

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load library and weights, encode the targets, and run once; after a failure the node stays unconfigured."""
        try:
            self._configure()
        except Exception as error:
            self._release()
            return self._failed("configure", error)
        self._monitor.failure = ""
        return super().on_configure(state)

    def _configure(self) -> None:
        with self._lock:
            self._settings = settings = parameters.read(self)
        for name in parameters.SPECS:
            # Values given at the start have not passed the callback.
            reason = parameters.refusal(name, self.get_parameter(name).value, "unconfigured")
            if reason:
                raise OcditError(reason)
        if not settings.library:
            raise OcditError("library is not set: it must name a folder made by `ocdit render`")
        library = self._load_library(settings)
        self._known = numbers_of(library)
        self._labels = dict(self._known)
        worker = Worker(
            library=library,
            read=self._read,
            on_result=self._publish,
            on_error=self._on_worker_error,
            read_depth=self._read_depth,
        )
        self._check_names(vars(settings), worker)
        worker.set_targets(settings.target_objects)
        self._load(worker)
        self._worker = worker
        self._editor = LibraryEditor(Path(settings.library), worker, self._publish_numbers)
        self._info = topics.create_publishers(self, "~/", topics.LATCHED, topics.LATCHED_QOS)
        self._space = Space(self, settings.target_frame, broadcast=settings.publish_tf)
        for name in settings.cameras or ("",):
            self._cameras[name] = Camera(
                self,
                name,
                self._group,
                worker,
                self._numbers,
                self._labels,
                lambda: self._settings,
                self._space,
                self._on_worker_error,
            )
        self.get_logger().info(
            f"{self._model_name} on {self._device}, {len(self._known)} objects in {settings.library}, "
            f"targets: {', '.join(self._targets())}; minimum score {self.score_threshold:g}; "
            f"image converter: {converter.converter_name()}"
        )

    def _load(self, worker: Worker) -> None:
        worker.start(self._load_network, batch=max(1, len(self._settings.cameras)))
        self._loaded = True

    def _load_network(self) -> Network:
        segmenter = self._load_segmenter(self._settings)
        self._model_name, self._device = segmenter.model_name, segmenter.device
        self._recommended_threshold = segmenter.settings.score_threshold
        numbers = self._track_numbers if self._settings.tracking else None
        return Network(segmenter, numbers, lambda: self._settings.region_of_interest, self._posed)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network if `deactivate` has freed it, and subscribe to the images."""
        try:
            if self._worker is not None and not self._loaded:
                self._load(self._worker)
        except Exception as error:
            return self._failed("activate", error)
        self._monitor.failure = ""
        self._monitor.seen.clear()
        result = super().on_activate(state)
        self._enable(True)
        self._publish_info()
        found = ", ".join(camera.topic() for camera in self._cameras.values())
        self.get_logger().info(f"waiting for images on {found}")
        return result

    def _enable(self, enabled: bool) -> None:
        self._enabled = enabled
        for camera in self._cameras.values():
            camera.unsubscribe()
            if enabled:
                camera.subscribe()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the subscriptions and free the network; the frame in progress is not published."""
        for camera in self._cameras.values():
            camera.unsubscribe()
        self._unload()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._release()
        return SUCCESS

    on_shutdown = on_cleanup

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured, from where the node can be started again."""
        self._release()
        self.get_logger().error(f"an error while {state.label}: the node is unconfigured now")
        return SUCCESS

    def _failed(self, transition: str, error: Exception) -> TransitionCallbackReturn:
        self._monitor.failure = f"{transition} failed: {describe(error)}"
        self.get_logger().error(self._monitor.failure)
        return FAILURE

    def _unload(self) -> None:
        self._loaded = False
        if self._worker is not None and not self._worker.stop():
            self.get_logger().warning("the frame in progress did not end within 30 s: memory is freed after it")

    def _release(self) -> None:
        for camera in self._cameras.values():
            camera.unsubscribe()
        self._unload()
        cameras, self._cameras = self._cameras, {}
        self._worker = self._editor = None
        for camera in cameras.values():
            camera.destroy()
        topics.destroy_publishers(self, self._info)
        if self._space is not None:
            self._space.close()
            self._space = None

    # Callbacks of the worker, in its thread.

    def _read(self, frame: Frame) -> np.ndarray:
        if frame.camera is not None and frame.camera.is_stale(frame.message, self._settings.max_age):
            raise StaleFrameError("older than max_age")
        return converter.to_rgb(frame.message, cv_bridge=True)

    def _read_depth(self, frame: Frame, image_size: tuple[int, ...]) -> Depth | None:
        if frame.camera is not None:
            return frame.camera.read_depth(frame, image_size)
        if frame.depth is None:
            return None
        return read_depth(frame.depth, frame.calibration.info if frame.calibration else None, image_size)

    def _publish(self, result: Result) -> None:
        segmentation = self._limited(result.segmentation, self.score_threshold)
        self._monitor.seen.update((instance.object_id, time.monotonic()) for instance in segmentation.instances)
        result.frame.camera.publish(dataclasses.replace(result, segmentation=segmentation))

    def _posed(self, segmentation: Segmentation) -> Segmentation:
        """Return the result with the instances whose poses are to be estimated: those that are published, or none."""
        if self._settings.estimate_poses:
            return self._limited(segmentation, self.score_threshold)
        return dataclasses.replace(segmentation, instances=())

    def _limited(self, segmentation: Segmentation, threshold: float) -> Segmentation:
        return topics.limited(segmentation, threshold, self._settings.object_thresholds, self._settings.object_limits)

    def _on_worker_error(self, text: str) -> None:
        self._monitor.last_error = (text, time.monotonic())
        # A broken camera sends thirty bad images a second: one line in five seconds is enough.
        self.get_logger().error(text, throttle_duration_sec=5.0)

    def _on_warning(self, text: str) -> None:
        self._monitor.last_warning = (text, time.monotonic())
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    # Services.

    def _on_set_target_objects(self, request: Any, response: Any) -> Any:
        try:
            worker = self._configured()
            targets = worker.set_targets(request.object_ids).result()
            with self._lock:
                if worker.targets == targets:  # else a later request is in force already
                    self.set_parameters([Parameter("target_objects", value=list(targets.object_ids))])
            when = "from the next frame on" if self._loaded else "once the node is active"
            response.success = True
            response.message = f"looking for {', '.join(targets.object_ids)} {when}"
        except Exception as error:
            response.message = describe(error)
            response.unknown = error.unknown if isinstance(error, UnknownObjectError) else []
        response.object_ids = self._targets()
        return response

    def _on_list_objects(self, _request: Any, response: Any) -> Any:
        response.object_ids = list(self._worker.library.object_ids) if self._worker is not None else []
        response.targets = self._targets()
        response.library = self._settings.library
        return response

    def _on_add_object(self, request: Any, response: Any) -> Any:
        try:
            editor, _ = self._edited()
            new = topics.read_object(request)
            response.object_id, response.class_id = editor.add(new, target=request.target)
            self._follow_library()
            response.success = True
            response.message = f"{response.object_id} is number {response.class_id} of {self._settings.library}"
        except Exception as error:
            response.message = describe(error)
        return response

    def _on_remove_object(self, request: Any, response: Any) -> Any:
        try:
            editor, _ = self._edited()
            editor.remove(request.object_id)
            self._follow_library()
            response.success, response.message = True, f"{request.object_id} is removed"
        except Exception as error:
            response.message = describe(error)
        response.targets = self._targets()
        return response

    def _on_reload_library(self, _request: Any, response: Any) -> Any:
        try:
            editor, worker = self._edited()
            new, gone = editor.reload(everything=not self._settings.target_objects)
            self._follow_library()
            response.success = True
            response.message = f"{len(worker.library.object_ids)} objects; new: {', '.join(new) or 'none'}; gone: "
            response.message += f"{', '.join(gone) or 'none'}; looking for {', '.join(self._targets())}"
        except Exception as error:
            response.message = describe(error)
        return response

    def _edited(self) -> tuple[LibraryEditor, Worker]:
        worker, editor = self._configured(), self._editor
        if editor is None:
            raise OcditError("the node is still being configured: ask again when it is inactive")
        return editor, worker

    def _follow_library(self) -> None:
        """Take objects that the library lacks out of the parameters, and the present targets into them."""
        with self._lock:
            worker = self._configured()
            known, targets = worker.library.object_ids, self._targets()
            changed: dict[str, str | list[str]] = {}
            # An empty list stays so while all objects are targets.
            if self._settings.target_objects or set(targets) != set(known):
                changed["target_objects"] = list(targets)
            for name in ("object_thresholds", "object_limits"):
                items = parameters.names(self.get_parameter(name).value)
                changed[name] = [item for item in items if item.rpartition("=")[0] in known] or [""]
            if self._settings.mask_object not in known:
                changed["mask_object"] = ""
            self.set_parameters([Parameter(name, value=value) for name, value in changed.items()])

    def _publish_numbers(self, numbers: dict[str, int]) -> None:
        self._known = numbers
        self._labels.update(numbers)
        self._publish_info()

    def _on_segment(self, request: Any, response: Any) -> Any:
        header = request.image.header
        try:
            worker = self._asked(request)
            info = self._calibration_for(request)
            calibration = Calibration(since=0.0, info=info if info.width else None)
            depth = request.depth if request.depth.width else None
            frame = Frame(request.image, calibration=calibration, depth=depth)
            result, segmentation = self._reply(worker.request(frame, request.object_ids), request)
            numbers = number(segmentation.instances, self._numbers)
            response.detections = topics.maker.to_detections(segmentation, numbers, header)
            response.instances = topics.maker.to_instances(segmentation, numbers, header)
            if request.overlay:
                response.overlay = topics.maker.to_overlay(result.image, segmentation, header)
            if result.depth is not None and self._space is not None:
                limited = dataclasses.replace(result, segmentation=segmentation)
                instances, place, _ = lifted(limited, self._space)
                response.detections_3d = topics.maker.to_detections_3d(instances, numbers, place)
            response.camera_info = info
            response.success = True
        except Exception as error:
            response.message = describe(error)
        return response

    def _on_segment_prompted(self, request: Any, response: Any) -> Any:
        name = request.object_id
        try:
            worker = self._asked(request)
            if name not in worker.library.object_ids:
                raise UnknownObjectError([name], list(worker.library.object_ids))
            prompt = topics.read_prompt(request)
            camera = self._cameras.get(request.camera or next(iter(self._cameras)))
            if camera is None:
                raise OcditError(
                    f"camera {request.camera!r} is none of {', '.join(self._cameras) or 'one without a name'}"
                )
            image = request.image if request.image.width else camera.newest
            if image is None:
                raise OcditError(f"no image has come on {camera.topic()} yet: give one, or wait")
            # The targets in force compete for the place.
            own = () if name in self._targets() else (name,)
            result, found = self._reply(worker.request(Frame(image), own, [prompt]), request)
            found = dataclasses.replace(found, instances=tuple(one for one in found.instances if one.object_id == name))
            best = max((one.score for one in result.segmentation.instances if one.object_id == name), default=0.0)
            numbers = number(found.instances, self._numbers)
            response.detections = topics.maker.to_detections(found, numbers, image.header)
            response.instances = topics.maker.to_instances(found, numbers, image.header)
            response.message = f"{name} with the score {best:.2f}" + ("" if found.instances else ", which is too low")
            response.success = True
        except Exception as error:
            response.message = describe(error)
        return response

    def _asked(self, request: Any) -> Worker:
        """Return the worker for a request with a threshold and a time-out; raises OcditError."""
        worker = self._configured()
        if self.state != "active":
            raise OcditError(f"the node is {self.state}: activate it first")
        if not request.score_threshold <= 1:
            raise OcditError(
                f"score_threshold {request.score_threshold:g} is not a score up to 1; below 0: as on the topics"
            )
        if not 0 <= request.timeout < math.inf:
            raise OcditError(f"timeout {request.timeout:g} is not a number of seconds; 0: none")
        return worker

    def _reply(self, reply: Future[Result], request: Any) -> tuple[Result, Segmentation]:
        """Return the result of a request, and its instances that the request's threshold and the parameters leave."""
        try:
            # A thread of the executor waits here; the worker limits how many requests wait.
            result = reply.result(request.timeout or None)
        except FutureTimeoutError:
            reply.cancel()
            raise OcditError(f"not segmented within {request.timeout:g} s") from None
        if request.score_threshold < 0:
            return result, self._limited(result.segmentation, self.score_threshold)
        limits = self._settings.object_limits
        return result, topics.limited(result.segmentation, request.score_threshold, {}, limits)

    def _calibration_for(self, request: Any) -> Any:
        """Return the calibration of a request, or the newest one that a camera has sent for the frame of its image."""
        found = [camera.calibration for camera in self._cameras.values() if camera.calibration is not None]
        frame = request.image.header.frame_id
        given = [request.camera_info] * bool(request.camera_info.width)
        return next(
            (info for info in given + found if info in given or info.header.frame_id == frame), request.camera_info
        )

    def _on_enable(self, request: Any, response: Any) -> Any:
        with self._lock:
            if self.state == "active":
                self._enable(request.data)
                response.success, response.message = (
                    True,
                    "enabled" if request.data else "paused; the network is loaded",
                )
            else:
                response.message = f"the node is {self.state}: activate it first"
        return response

    def _on_reset_tracking(self, _request: Any, response: Any) -> Any:
        try:
            worker = self._configured()
            if not self._settings.tracking:
                raise OcditError("the parameter tracking is false: nothing is tracked")
            worker.call(lambda network: network.reset_tracking()).result()
            response.success, response.message = True, "the instances of the next frame get new ids"
        except Exception as error:
            response.message = describe(error)
        return response

    def _configured(self) -> Worker:
        if self._worker is None:
            raise OcditError(f"the node is {self.state}: configure it first")
        return self._worker

    def _targets(self) -> list[str]:
        targets = self._worker.targets if self._worker is not None else None
        return list(targets.object_ids) if targets is not None else []

    def _check_names(self, values: Mapping[str, Any], worker: Worker) -> None:
        """Raise OcditError if one of these parameters names an object that the library lacks."""
        known = list(worker.library.object_ids)
        for parameter in {"mask_object", "object_thresholds", "object_limits"} & values.keys():
            value = values[parameter]
            unknown = [name for name in ([value] if isinstance(value, str) else value) if name and name not in known]
            if unknown:
                raise OcditError(f"{parameter}: {UnknownObjectError(unknown, known)}")

    # Parameters, information and diagnostics.

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        reasons = [parameters.refusal(change.name, change.value, self.state) for change in changes]
        if any(reasons):
            return SetParametersResult(successful=False, reason="; ".join(filter(None, reasons)))
        new = parameters.typed({change.name: change.value for change in changes if change.name in parameters.SPECS})
        try:
            if self._worker is not None:
                self._check_names(new, self._worker)
        except OcditError as error:
            return SetParametersResult(successful=False, reason=describe(error))
        try:
            if self._worker is not None and list(new.get("target_objects", self._targets())) != self._targets():
                self._worker.set_targets(new["target_objects"]).result()
        except Exception as error:
            return SetParametersResult(successful=False, reason=f"target_objects: {describe(error)}")
        with self._lock:
            self._settings = dataclasses.replace(self._settings, **new)
        if new.keys() & {"score_threshold", "target_objects"}:
            self._publish_info()
        return SetParametersResult(successful=True)

    def _publish_info(self) -> None:
        worker = self._worker
        if worker is None or not self._info:
            return
        header = Header(stamp=self.get_clock().now().to_msg())
        self._info["label_info"].publish(topics.maker.to_label_info(self._known, self.score_threshold, header))
        info = VisionInfo(header=header, method=self._model_name, database_location=self._settings.library)
        info.database_version = worker.targets.version if worker.targets else 0
        self._info["vision_info"].publish(info)

    def _uptime(self) -> float:
        return time.monotonic() - self._started

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        """End the process if another node of the same name runs already: both would answer every service call."""
        uptime, name = self._uptime(), self.get_fully_qualified_name()
        if uptime > NAMESAKES_UNTIL:
            return
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            if status.name != f"{name}: segmentation" or values.get("instance", self._instance) == self._instance:
                continue
            if (float(values["uptime s"]), values["instance"]) > (uptime, self._instance):
                raise OcditError(
                    f"a node {name} runs already ({values['process']}): end it, or start this one in another namespace "
                    "or ROS domain"
                )

    def _report(self) -> None:
        values = {
            "device": self._device or self._settings.device,
            "instance": self._instance,
            "process": PROCESS,
            "uptime s": f"{self._uptime():.3f}",
        }
        cameras, name = list(self._cameras.values()), self.get_fully_qualified_name()
        state = self.state if self._enabled or self.state != "active" else "paused"
        status = diagnostics.report(name, state, self._settings, self._monitor, cameras, self._worker, values)
        message = DiagnosticArray(status=status)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


class _LogHandler(logging.Handler):
    """Passes warnings of `ocdit_core` and `ocdit_ros` on to the node, from any thread, each as one line."""

    def __init__(self, forward: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._forward = forward
        self._loggers = [logging.getLogger(name) for name in ("ocdit_core", "ocdit_ros")]
        for logger in self._loggers:
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        self._forward(" ".join(record.getMessage().split()))

    def close(self) -> None:
        """Stop."""
        for logger in self._loggers:
            logger.removeHandler(self)
        super().close()


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; return the exit code."""
    return run(SegmentationNode, args, SegmentationNode.close)


if __name__ == "__main__":
    sys.exit(main())
