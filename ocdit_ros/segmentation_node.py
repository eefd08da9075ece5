"""The lifecycle node `ocdit_segmentation`: ROS in and out. Inference is the worker's, conversion is messages.py's."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ocdit_core.errors import OcditError
from ocdit_ros import diagnostics, messages, parameters, pip_home
from ocdit_ros.outputs import Outputs, above
from ocdit_ros.pipeline import Pipeline, free_memory, load_library, load_segmenter
from ocdit_ros.services import Services
from ocdit_ros.spinning import run
from ocdit_ros.worker_types import Result, describe

pip_home.prepare()

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402  (needs the prefix)
from rcl_interfaces.msg import SetParametersResult  # noqa: E402
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup  # noqa: E402
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402

KEPT_CAMERA_INFOS = 300


class SegmentationNode(LifecycleNode):
    """The segmenter as a lifecycle node: topics, services and parameters are listed in the README.

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
        super().__init__("ocdit_segmentation")
        self._load_library = library_loader
        self._load_segmenter = segmenter_loader
        self.pipeline: Pipeline | None = None
        self.numbers = messages.InstanceNumbers()
        self._outputs: Outputs | None = None
        self._subscriptions_of_ours: list[Any] = []
        # A result comes seconds after its image on a slow machine: the calibrations of that time are kept, by stamp.
        self._camera_infos: deque[CameraInfo] = deque(maxlen=KEPT_CAMERA_INFOS)
        self._monitor = diagnostics.Monitor()
        parameters.declare(self)
        self.settings = parameters.read(self)
        # These callbacks never wait for inference, only for the worker's lock (microseconds).
        self._free = ReentrantCallbackGroup()
        self._services_of_ours = Services(self, self._free, self._publish_info)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._report, callback_group=self._free)
        if self.settings.autostart:
            self._autostart_timer = self.create_timer(
                0.01, self._autostart, callback_group=MutuallyExclusiveCallbackGroup()
            )

    @property
    def state(self) -> str:
        """The lifecycle state's label: unconfigured, inactive, active, finalized, or a transition."""
        return str(self._state_machine.current_state[1])

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # Transitions: what one does, its opposite undoes.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load library and weights, encode the targets, and run once; on a failure, stay unconfigured and say why."""
        try:
            self._configure()
        except Exception as error:
            self._release()
            self._monitor.failure = f"configure failed: {describe(error)}"
            self.get_logger().error(self._monitor.failure)
            return TransitionCallbackReturn.FAILURE
        self._monitor.failure = ""
        return super().on_configure(state)

    def _configure(self) -> None:
        self.settings = parameters.read(self)
        for name in parameters.SPECS:
            # The values that came with the start have not passed the callback.
            reason = parameters.refusal(name, self.get_parameter(name).value, "unconfigured")
            if reason:
                raise OcditError(reason)
        if not self.settings.library:
            raise OcditError("library is not set: it must name a folder made by `ocdit render`")
        library = self._load_library(self.settings)
        segmenter = self._load_segmenter(self.settings)
        self._outputs = Outputs(self)
        self.pipeline = Pipeline(
            library=library, segmenter=segmenter, on_result=self._publish, on_error=self._on_worker_error
        )
        self.pipeline.check_names([self.settings.mask_object] if self.settings.mask_object else [])
        self.pipeline.start(self.settings.target_objects)
        self.get_logger().info(
            f"{segmenter.model_name} on {segmenter.device}, {len(library.object_ids)} objects in "
            f"{self.settings.library}, targets: {', '.join(self.pipeline.targets())}; "
            f"images are converted by {messages.image_converter()[0]}"
        )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        result = super().on_activate(state)
        self._monitor.received_at = time.monotonic()
        reliable = self.settings.image_reliability == "reliable"
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT)
        kind = Image if self.settings.image_transport == "raw" else CompressedImage
        self._subscriptions_of_ours = [
            self.create_subscription(kind, self._image_topic(), self._on_image, qos, callback_group=self._free),
            self.create_subscription(
                CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data, callback_group=self._free
            ),
        ]
        self._publish_info()
        self.get_logger().info(f"waiting for images on {self._image_topic()}")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the subscription; the frame under way is not published."""
        self._unsubscribe()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and all that belongs to it."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from whichever state."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured, from where the node can be started again."""
        self._release()
        self.get_logger().error(f"an error while {state.label}: the node is unconfigured now")
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """End the worker; the node can be destroyed afterwards."""
        self._release()

    def _image_topic(self) -> str:
        """The resolved topic; the compressed one lies below the raw one, as image_transport lays it."""
        topic = self.resolve_topic_name("image")
        return topic if self.settings.image_transport == "raw" else f"{topic}/compressed"

    def _unsubscribe(self) -> None:
        while self._subscriptions_of_ours:
            self.destroy_subscription(self._subscriptions_of_ours.pop())
        self._camera_infos.clear()
        if self.pipeline is not None:
            self.pipeline.worker.flush()

    def _release(self) -> None:
        self._unsubscribe()
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None and not pipeline.close():
            self.get_logger().warning("the frame under way did not end within 30 s")
        outputs, self._outputs = self._outputs, None
        if outputs is not None:
            outputs.destroy()
        self._monitor.last_result = None
        del pipeline
        free_memory()

    # Images in, results out: the subscription hands over, the worker's thread publishes.

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._monitor.received_at = time.monotonic()
        pipeline = self.pipeline
        if pipeline is not None:
            pipeline.worker.submit(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_infos.append(message)

    def _publish(self, result: Result) -> None:
        settings, outputs = self.settings, self._outputs
        if outputs is None:
            return
        segmentation = above(result.segmentation, settings.score_threshold)
        numbers = self.numbers.take(len(segmentation.instances))
        stamp = result.frame.header.stamp
        camera_info = next((info for info in reversed(list(self._camera_infos)) if info.header.stamp == stamp), None)
        outputs.publish(result, segmentation, numbers, settings.mask_object, camera_info)
        self._monitor.last_result = result
        self._monitor.processed_at.append(time.monotonic())
        if settings.diagnostics_every_frame:
            self._report()

    def _on_worker_error(self, text: str) -> None:
        self._monitor.last_error = (text, time.monotonic())
        # A broken camera sends thirty bad images a second: one line of them in five seconds is enough.
        self.get_logger().error(text, throttle_duration_sec=5.0)

    def _publish_info(self) -> None:
        pipeline, outputs = self.pipeline, self._outputs
        if pipeline is None or outputs is None:
            return
        outputs.publish_label_info(pipeline.library.object_ids, self.settings.score_threshold)
        targets = pipeline.worker.targets
        outputs.publish_vision_info(
            pipeline.segmenter.model_name, self.settings.library, targets.version if targets else 0
        )

    def _report(self) -> None:
        pipeline = self.pipeline
        topic = self._image_topic()
        self._diagnostics.publish(
            diagnostics.report(
                name=self.get_fully_qualified_name(),
                stamp=self.get_clock().now().to_msg(),
                now=time.monotonic(),
                state=self.state,
                monitor=self._monitor,
                counters=pipeline.worker.counters if pipeline else None,
                targets=pipeline.worker.targets if pipeline else None,
                device=getattr(pipeline.segmenter, "device", "") if pipeline else self.settings.device,
                model=self.settings.model,
                stale_after=self.settings.stale_after,
                image_topic=topic,
                publishers=self.count_publishers(topic),
            )
        )

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        reasons = [parameters.refusal(change.name, change.value, self.state) for change in changes]
        if any(reasons):
            return SetParametersResult(successful=False, reason="; ".join(filter(None, reasons)))
        new = {change.name: change.value for change in changes if change.name in parameters.SPECS}
        if new.get("mask_object") and self.pipeline is not None:
            try:
                self.pipeline.check_names([new["mask_object"]])
            except OcditError as error:
                return SetParametersResult(successful=False, reason=f"mask_object: {describe(error)}")
        if "target_objects" in new:
            new["target_objects"] = parameters.names(new["target_objects"])
            try:
                self._services_of_ours.apply_targets(new["target_objects"])
            except OcditError as error:
                return SetParametersResult(successful=False, reason=f"target_objects: {describe(error)}")
        self.settings = dataclasses.replace(self.settings, **new)
        if "score_threshold" in new:
            self._publish_info()
        return SetParametersResult(successful=True)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    return run(SegmentationNode, args, SegmentationNode.close)


if __name__ == "__main__":
    sys.exit(main())
