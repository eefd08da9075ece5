"""A node whose subscription is destroyed at the worst instant: while the executor builds its wait set."""

import sys

from rclpy.node import Node
from rclpy.waitable import NumberOfEntities, Waitable
from std_msgs.msg import String

from ocdit_ros.spinning import run


class Destroyer(Waitable):
    """Destroys a subscription when it is itself put into the wait set, the second time that this happens."""

    def __init__(self, node):
        super().__init__(node.default_callback_group)
        self.node = node
        self.turns = 0
        self.subscription = None

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass

    def is_ready(self, wait_set):
        return False

    def take_data(self):
        return None

    async def execute(self, taken_data):
        pass

    def get_num_entities(self):
        return NumberOfEntities()

    def add_to_wait_set(self, wait_set):
        self.turns += 1
        if self.turns == 2:
            self.node.destroy_subscription(self.subscription)
            print("destroyed", flush=True)


def make_node():
    node = Node("unlucky")
    destroyer = Destroyer(node)
    # Before the subscription's own waitables, which are gathered already and are added to the wait set after it.
    node.add_waitable(destroyer)
    destroyer.subscription = node.create_subscription(String, "text", print, 1)
    node.create_timer(0.02, lambda: print("tick", flush=True))
    return node


if __name__ == "__main__":
    sys.exit(run(make_node))
