import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import made_up
from PIL import Image

from ocdit_core.errors import OutputError
from ocdit_core.objects.gallery import Card
from ocdit_core.objects.library import ObjectEntry
from ocdit_core.web_page import write_page


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and the text of each article."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_all_views_of_all_objects_are_on_one_page(tmp_path):
    path = tmp_path / "new" / "page.html"
    mug, drill = made_up("mug", views=3), made_up("drill", views=42, sources=("drill.obj", "drill.mtl"))
    mug_card = Card(
        name="mug", templates=mug, entry=ObjectEntry(id=7, colour=(230, 25, 75)), problems=["view 2 of 3: black"]
    )
    damaged = Card(name="kettle", problems=["kettle.npz: truncated"])
    write_page(
        path, "gallery.html", title="my objects", cards=iter([mug_card, Card(name="drill", templates=drill), damaged])
    )
    found = Page(path.read_text())
    images = found.of("img")
    assert len(images) == 45
    assert images[0]["alt"] == "mug, view 1"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[1]["src"].split(",")[1]))).convert("RGB"))
    smooth = [np.asarray(Image.fromarray(v).resize((16, 16), Image.Resampling.BOX), float) for v in (shown, mug.rgb[1])]
    assert np.abs(smooth[0] - smooth[1]).mean() < 6
    assert [("data-problem" in article) for article in found.of("article")] == [True, False, True]
    for text in (
        "my objects",
        "id 7",
        "12.0 cm",
        "42 views",
        "drill.obj and 1 more",
        "view 2 of 3: black",
        "truncated",
    ):
        assert text in found.text
    # Nothing is loaded from elsewhere, and nothing is left beside the page.
    assert not re.search(r"(src|href)=\"(?!data:)", path.read_text())
    assert [entry.name for entry in path.parent.iterdir() if entry.name[0] != "."] == ["page.html"]


def test_names_cannot_break_the_page(tmp_path):
    evil = '<script>alert("1")</script>" onload="x'
    sound = Card(name=evil, templates=made_up(evil, views=1, sources=(evil,)), problems=[evil])
    write_page(tmp_path / "page.html", "gallery.html", title=evil, cards=[sound, Card(name=evil, problems=[evil])])
    found = Page((tmp_path / "page.html").read_text())
    assert len(found.of("script")) == 1
    assert all("onload" not in attributes for _, attributes in found.tags)
    assert found.of("img")[0]["alt"] == evil + ", view 1"
    assert evil in found.text


def test_a_page_that_fails_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        write_page(tmp_path, "gallery.html", title="t", cards=[])

    def broken():
        yield Card(name="mug", templates=made_up(views=1))
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_page(tmp_path / "page.html", "gallery.html", title="t", cards=broken())
    assert not list(tmp_path.iterdir())


def test_what_is_known_is_said_in_words():
    turn = np.tile(np.eye(4), (3, 1, 1))
    axis = np.zeros((1, 2, 3))
    assert Card(
        name="a", templates=made_up(symmetries_continuous=axis, symmetries_discrete=turn, diameter=1.2)
    ).facts() == [
        "1.20 m", "12 views", "unit mm", "symmetric: 1 axis, 3 discrete",
    ]  # fmt: skip
    photos = made_up(views=5, origin="photos", unit="", diameter=float("nan"), sources=("a.jpg",))
    assert Card(name="a", templates=photos).facts() == ["size unknown", "5 views", "from photographs", "source a.jpg"]
