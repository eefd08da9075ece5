"""The pages about the node say what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest
from assets import ROOT
from harness import NODE, Client, NodeProcess
from rcl_interfaces.srv import ListParameters

from ocdit_ros import parameters, topics

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("ros_interface", ROOT / "tools" / "ros_interface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code(tool):
    page = tool.PAGE.read_text()
    assert page == tool.fill(page), "run python tools/ros_interface.py"
    assert tool.fill(page.replace("| `model` |", "| `another` |")) == page


def test_a_table_without_a_place_is_named(tool):
    with pytest.raises(SystemExit, match="'services' has 0 places"):
        tool.fill(tool.PAGE.read_text().replace("<!-- services -->", ""))


def test_the_running_node_has_this_interface_and_no_other():
    process = NodeProcess(STAND_IN, parameters={"library": "stand-in", "autostart": True})
    client = Client(process)
    try:
        client.wait_for_camera()
        name = NODE.strip("/")
        client.wait_until(lambda: (name, "/") in client.node.get_node_names_and_namespaces())

        def found(what):
            rows = getattr(client.node, f"get_{what}_names_and_types_by_node")(name, "/")
            return {topic: kind.replace("/msg/", "/").replace("/srv/", "/") for topic, (kind,) in rows}

        def expected(entries, prefix):
            return {
                f"{prefix}{key}": f"{entry.kind.__module__.split('.')[0]}/{entry.kind.__name__}"
                for key, entry in entries.items()
            }

        subscribed = expected(topics.SUBSCRIBED, "/")
        del subscribed["/image/compressed"]
        # A node finds another one of its name there.
        subscribed |= expected(topics.CLICKED, f"{NODE}/") | expected(topics.DIAGNOSTICS, "")
        published = expected(topics.PER_FRAME | topics.PER_REGIONS | topics.LATCHED, f"{NODE}/") | expected(
            topics.DIAGNOSTICS, ""
        )
        of_every_node = {"/rosout", "/parameter_events", f"{NODE}/transition_event"}
        # The node is discovered first, then its topics one after the other.
        client.wait_until(lambda: found("publisher").keys() == published.keys() | of_every_node)
        assert {topic: kind for topic, kind in found("publisher").items() if topic not in of_every_node} == published
        client.wait_until(lambda: found("subscriber").keys() == subscribed.keys())
        assert found("subscriber") == subscribed
        services = expected(topics.SERVICES, f"{NODE}/")
        client.wait_until(lambda: found("service").keys() >= services.keys())
        assert {
            key: kind for key, kind in found("service").items() if kind.startswith(("ocdit_interfaces/", "std_srvs/"))
        } == services

        lister = client.node.create_client(ListParameters, f"{NODE}/list_parameters")
        client.services["list_parameters"] = lister
        names = set(client.call("list_parameters")[0].result.names)
        assert names - {"use_sim_time", "start_type_description_service"} == set(parameters.SPECS)
    finally:
        client.close()
        assert process.stop() == 0, process.output


def test_the_readme_names_what_there_is():
    known = {*topics.PER_FRAME, *topics.LATCHED, *topics.SERVICES}
    for page in (ROOT / "README.md", ROOT / "docs" / "cad_to_grasp.md", ROOT / "docs" / "troubleshooting.md"):
        assert set(re.findall(r"`~/([a-z_]+)`", page.read_text())) <= known


@pytest.mark.parametrize("page", ["README.md", "docs/ros.md", "docs/cad_to_grasp.md"])
def test_commands_look_for_objects_that_the_examples_have(page):
    known = {path.stem for path in (ROOT / "examples" / "meshes").iterdir()}
    text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text())
    forms = ("--targets ([a-z_ ]+?) --", 'target_objects:="([^"]+)"', "target_objects:=([a-z_]+)")
    forms += (r"object_ids: \[([a-z_, ]+)\]", "mask_object: ([a-z_]+)")
    for names in [found for form in forms for found in re.findall(form, text)]:
        assert set(names.replace(",", " ").split()) <= known, names


@pytest.mark.parametrize(
    "words",
    [
        "nobody publishes it",
        "its publisher is best effort, image_reliability is reliable",
        "discarding images on ",
        "a frame could not be segmented: ",
        "is not supported",
        "no depth image within depth_slop",
        "depth needs a calibration",
        "the calibration on ",
        "regions could not be labelled: ",
        "is a depth image",
        "image converter: ",
        "out of memory",
        "holds no metadata.yaml",
        "damaged, cut off",
        "messages are left in ",
        "GPU memory MiB",
    ],
)
def test_messages_are_quoted_as_they_are(words):
    assert words in (ROOT / "docs" / "troubleshooting.md").read_text()
    assert any(words in path.read_text() for path in (ROOT / "ocdit_ros").glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"
