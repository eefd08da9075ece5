"""The lifecycle node `ocdit_segmentation`: ROS in and out. Inference is the worker's, conversion is messages.py's."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ocdit_core.errors import OcditError
from ocdit_ros import diagnostics, messages, parameters, pip_home
from ocdit_ros.cameras import Camera
from ocdit_ros.log_forwarding import LogForwarding
from ocdit_ros.numbering import InstanceNumbers
from ocdit_ros.outputs import InfoTopics
from ocdit_ros.pipeline import Pipeline, load_library, load_segmenter
from ocdit_ros.services import Services
from ocdit_ros.spinning import run
from ocdit_ros.worker_types import Counters, Result, TargetSet, describe

pip_home.prepare()

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402  (needs the prefix)
from rcl_interfaces.msg import SetParametersResult  # noqa: E402
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup  # noqa: E402
from rclpy.clock import Clock, ClockType  # noqa: E402
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class SegmentationNode(LifecycleNode):
    """The segmenter as a lifecycle node: topics, services and parameters are listed in docs/ros.md.

    Args:
        library_loader: opens the library that the settings name.
        segmenter_loader: loads the network that the settings name.
    """

    def __init__(
        self,
        *,
        library_loader: Callable[[parameters.Settings], Any] = load_library,
        segmenter_loader: Callable[[parameters.Settings], Any] = load_segmenter,
    ):
        # Callbacks never wait for inference, only for locks that are held for microseconds.
        self._free = ReentrantCallbackGroup()
        super().__init__("ocdit_segmentation")
        self._load_library = library_loader
        self._load_segmenter = segmenter_loader
        self.lock = threading.RLock()
        """Held while settings or targets change: a change by service and its echo in the parameter are one step."""
        self.pipeline: Pipeline | None = None
        self.numbers = InstanceNumbers(reuse=True)
        self._cameras: dict[str, Camera] = {}
        self._info: InfoTopics | None = None
        self._monitor = diagnostics.Monitor()
        parameters.declare(self)
        self.settings = parameters.read(self)
        Services(self, self._free)
        self._log_forwarding = LogForwarding(self._on_warning)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # ROS time may stand still or jump.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._report, callback_group=self._free, clock=steady)
        if self.settings.autostart:
            self._autostart_timer = self.create_timer(
                0.01, self._autostart, callback_group=MutuallyExclusiveCallbackGroup(), clock=steady
            )

    @property
    def default_callback_group(self) -> CallbackGroup:
        """The group of the services that every node has: they too answer while weights are loaded."""
        return self._free

    @property
    def state(self) -> str:
        """The lifecycle state's label: unconfigured, inactive, active, finalized, or a transition."""
        return str(self._state_machine.current_state[1])

    @property
    def score_threshold(self) -> float:
        """The threshold in force: the parameter's, or the model's recommendation."""
        asked = self.settings.score_threshold
        return asked if asked >= 0 or self.pipeline is None else self.pipeline.recommended_threshold

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    # Transitions: what one does, its opposite undoes.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load library and weights, encode the targets, and run once; on a failure, stay unconfigured and say why."""
        try:
            self._configure()
        except Exception as error:
            self._release()
            return self._failed("configure", error)
        self._monitor.failure = ""
        return super().on_configure(state)

    def _configure(self) -> None:
        with self.lock:
            self.settings = settings = parameters.read(self)
        for name in parameters.SPECS:
            # The values that came with the start have not passed the callback.
            reason = parameters.refusal(name, self.get_parameter(name).value, "unconfigured")
            if reason:
                raise OcditError(reason)
        if not settings.library:
            raise OcditError("library is not set: it must name a folder made by `ocdit render`")
        pipeline = Pipeline(
            settings=settings,
            library=self._load_library(settings),
            load_segmenter=self._load_segmenter,
            wants_uncertainty=lambda: any(camera.outputs.wanted("uncertainty") for camera in self._cameras.values()),
            on_result=self._publish,
            on_error=self._on_worker_error,
            on_targets_failed=self._on_targets_failed,
            is_stale=lambda image, source: self._cameras[source].is_stale(image, self.settings),
        )
        pipeline.check_names([settings.mask_object] if settings.mask_object else [])
        pipeline.load()
        self.pipeline = pipeline
        self._info = InfoTopics(self)
        self.numbers.reuse = not settings.tracking
        for name in settings.cameras or ("",):
            self._cameras[name] = Camera(self, name, self._free, settings, pipeline.worker.submit, self.numbers)
        self.get_logger().info(
            f"{pipeline.model_name} on {pipeline.device}, {len(pipeline.library.object_ids)} objects in "
            f"{settings.library}, targets: {', '.join(pipeline.targets())}; scores from {self.score_threshold:g} on; "
            f"images are converted by {messages.image_converter()[0]}"
        )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network where `deactivate` has freed it, and subscribe to the images."""
        try:
            if self.pipeline is not None and not self.pipeline.loaded:
                self.pipeline.load()
        except Exception as error:
            return self._failed("activate", error)
        self._monitor.failure = ""
        result = super().on_activate(state)
        for camera in self._cameras.values():
            camera.subscribe(self.settings)
        self.publish_info()
        topics = (camera.topic(self.settings) for camera in self._cameras.values())
        self.get_logger().info(f"waiting for images on {', '.join(topics)}")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the subscriptions and free the network; the frame under way is not published."""
        for camera in self._cameras.values():
            camera.unsubscribe()
        self._unload()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all, from whichever state."""
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured, from where the node can be started again."""
        self._release()
        self.get_logger().error(f"an error while {state.label}: the node is unconfigured now")
        return SUCCESS

    def close(self) -> None:
        """End the worker, if it ends soon; the node can be destroyed afterwards."""
        self._log_forwarding.close()
        if self.pipeline is not None:
            self.pipeline.worker.stop(timeout=0.5)

    def _failed(self, transition: str, error: Exception) -> TransitionCallbackReturn:
        self._monitor.failure = f"{transition} failed: {describe(error)}"
        self.get_logger().error(self._monitor.failure)
        return FAILURE

    def _unload(self) -> None:
        if self.pipeline is not None and not self.pipeline.unload():
            self.get_logger().warning("the frame under way did not end within 30 s: memory is free after it")

    def _release(self) -> None:
        for camera in self._cameras.values():
            camera.unsubscribe()
        self._unload()
        cameras, self._cameras = self._cameras, {}
        self.pipeline = None
        for camera in cameras.values():
            camera.destroy()
        info, self._info = self._info, None
        if info is not None:
            info.destroy()

    # What the worker reports, from its thread.

    def _publish(self, result: Result) -> None:
        camera = self._cameras.get(result.source)
        if camera is not None:
            camera.publish(result, self.settings, self.score_threshold)
            if self.settings.diagnostics_every_frame:
                self._report()

    def _on_worker_error(self, text: str) -> None:
        self._monitor.last_error = (text, time.monotonic())
        # A broken camera sends thirty bad images a second: one line of them in five seconds is enough.
        self.get_logger().error(text, throttle_duration_sec=5.0)

    def _on_warning(self, text: str) -> None:
        self._monitor.last_warning = (text, time.monotonic())
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    def _on_targets_failed(self, stay: TargetSet) -> None:
        with self.lock:
            if self.pipeline is None or self.pipeline.worker.targets != stay:
                return
            # The parameter named the new set since the reply.
            self.set_parameters([Parameter("target_objects", value=list(stay.object_ids))])
            self.publish_info()

    def publish_info(self) -> None:
        """Publish label_info and vision_info, after a change of what they say."""
        pipeline, info = self.pipeline, self._info
        if pipeline is None or info is None:
            return
        targets = pipeline.worker.targets
        info.publish(
            pipeline.labels,
            self.score_threshold,
            pipeline.model_name,
            self.settings.library,
            targets.version if targets else 0,
        )

    def _report(self) -> None:
        pipeline, settings = self.pipeline, self.settings
        counters = pipeline.worker.counters if pipeline else {}
        report = diagnostics.NodeReport(
            name=self.get_fully_qualified_name(),
            now=time.monotonic(),
            state=self.state,
            monitor=self._monitor,
            cameras=[
                diagnostics.CameraReport(
                    name=name,
                    topic=camera.topic(settings),
                    unheard=functools.partial(camera.unheard, settings),
                    monitor=camera.monitor,
                    counters=counters.get(name, Counters()),
                )
                for name, camera in list(self._cameras.items())
            ],
            targets=pipeline.worker.targets if pipeline else None,
            device=pipeline.device if pipeline else settings.device,
            model=settings.model,
            batch=pipeline.worker.batch if pipeline else 0,
            stale_after=settings.stale_after,
            max_age=settings.max_age,
        )
        self._diagnostics.publish(diagnostics.to_message(report, self.get_clock().now().to_msg()))

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        reasons = [parameters.refusal(change.name, change.value, self.state) for change in changes]
        if any(reasons):
            return SetParametersResult(successful=False, reason="; ".join(filter(None, reasons)))
        new = {change.name: change.value for change in changes if change.name in parameters.SPECS}
        new = parameters.typed(new)
        with self.lock:
            pipeline = self.pipeline
            if pipeline is not None:
                reason = self._apply(pipeline, new)
                if reason:
                    return SetParametersResult(successful=False, reason=reason)
            self.settings = dataclasses.replace(self.settings, **new)
            if new.keys() & {"score_threshold", "target_objects"}:
                self.publish_info()
        return SetParametersResult(successful=True)

    @staticmethod
    def _apply(pipeline: Pipeline, new: dict[str, Any]) -> str:
        """Make the worker follow new values; returns why not, where nothing has changed then."""
        try:
            name = "mask_object"
            pipeline.check_names([new[name]] if new.get(name) else [])
            name = "target_objects"
            if name in new:
                pipeline.set_targets(new[name])
        except OcditError as error:
            return f"{name}: {describe(error)}"
        if "fresh_within" in new:
            pipeline.worker.set_fresh_within(new["fresh_within"])
        return ""


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    return run(SegmentationNode, args, SegmentationNode.close)


if __name__ == "__main__":
    sys.exit(main())
