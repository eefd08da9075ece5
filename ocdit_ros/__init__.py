"""The ROS 2 side of OC-DiT: the segmentation node, its worker, and numpy <-> messages. All the rest is ocdit_core."""
