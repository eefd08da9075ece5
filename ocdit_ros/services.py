"""The node's services. They answer in milliseconds whatever the worker does; only ~/segment waits for its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocdit_core.errors import OcditError, UnknownObjectError
from ocdit_ros import interface, messages, pip_home
from ocdit_ros.outputs import above
from ocdit_ros.worker_types import describe

if TYPE_CHECKING:
    from rclpy.callback_groups import CallbackGroup

    from ocdit_ros.segmentation_node import SegmentationNode

pip_home.prepare()

from rclpy.parameter import Parameter  # noqa: E402


class Services:
    """~/set_target_objects, ~/list_objects and ~/segment of one node, there in every state of it.

    Args:
        node: whose services they are.
        group: of callbacks that may run side by side.
    """

    def __init__(self, node: SegmentationNode, group: CallbackGroup):
        self._node = node
        callbacks = {
            "set_target_objects": self._on_set_target_objects,
            "list_objects": self._on_list_objects,
            "segment": self._on_segment,
        }
        for name, entry in interface.SERVICES.items():
            node.create_service(entry.kind, f"~/{name}", callbacks[name], callback_group=group)

    def _on_set_target_objects(self, request: Any, response: Any) -> Any:
        try:
            with self._node.lock:
                targets = self._pipeline().worker.set_targets(request.object_ids)
                # The parameter says the same, and survives a cleanup.
                self._node.set_parameters([Parameter("target_objects", value=list(targets.object_ids))])
            response.success = True
            response.message = f"looking for {', '.join(targets.object_ids)} from the next frame on"
        except OcditError as error:
            response.message = describe(error)
            response.unknown = error.unknown if isinstance(error, UnknownObjectError) else []
        pipeline = self._node.pipeline
        response.object_ids = pipeline.targets() if pipeline else []
        return response

    def _on_list_objects(self, _request: Any, response: Any) -> Any:
        pipeline = self._node.pipeline
        if pipeline is not None:
            response.object_ids = list(pipeline.library.object_ids)
            response.targets = pipeline.targets()
        response.library = self._node.settings.library
        return response

    def _on_segment(self, request: Any, response: Any) -> Any:
        header = request.image.header
        try:
            worker = self._pipeline().worker
            if self._node.state != "active":
                raise OcditError(f"the node is {self._node.state}: activate it first")
            # A thread of the executor waits here; the worker refuses a request before they could all wait.
            result = worker.request(request.image).result()
            segmentation = above(result.segmentation, self._node.score_threshold)
            numbers = self._node.numbers.take(len(segmentation.instances))
            response.detections = messages.to_detections(segmentation, numbers, header)
            response.instances = messages.to_instances(segmentation, numbers, header)
            response.success = True
        except Exception as error:
            response.message = describe(error)
        return response

    def _pipeline(self) -> Any:
        if self._node.pipeline is None:
            raise OcditError(f"the node is {self._node.state}: configure it first")
        return self._node.pipeline
