from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import LabelConfigError
from backend.label_config import Control, image_url, parse_label_config

ROOT = Path(__file__).parents[3]


def test_reads_the_bundled_configuration():
    config = parse_label_config((ROOT / "label_config" / "brush.xml").read_text())
    (control,) = config.controls
    assert control.to_name == "image"
    assert len(control.labels) == 2
    assert config.images == {"image": "$image"}
    assert config.notices == ()


def test_several_controls_images_aliases_and_any_name_of_the_data():
    config = parse_label_config(
        """<View><Header value="Two scans"/>
        <Image name="left" value="$scan.left"/><Image name="right" value="$right_url"/>
        <BrushLabels name="a" toName="left"><Label value="Cell" alias="c"/><Label value="Cell wall"/></BrushLabels>
        <BrushLabels name="b" toName="left, right"><Label value="Cell"/></BrushLabels>
        <Choices name="quality" toName="left"><Choice value="good"/></Choices></View>"""
    )
    assert config.controls == (
        Control("a", "left", ("c", "Cell wall")),
        Control("b", "left", ("Cell",)),
        Control("b", "right", ("Cell",)),
    )
    assert config.notices == ()
    assert config.control("b", "right") == config.controls[2]
    assert config.control("a", "right") is None


def test_dynamic_labels_accept_any_label():
    config = parse_label_config(
        '<View><Image name="i" value="$x"/><BrushLabels name="b" toName="i" value="$labels"/></View>'
    )
    assert config.controls[0].knows("anything")


def test_says_what_is_not_supported():
    config = parse_label_config(
        """<View><Image name="i" value="$x"/><Image name="pages" valueList="$all"/>
        <EllipseLabels name="p" toName="i"><Label value="a"/></EllipseLabels><Brush name="lone" toName="i"/>
        <BrushLabels name="b" toName="pages"><Label value="a"/></BrushLabels>
        <BrushLabels name="e" toName="i"/></View>"""
    )
    assert config.controls == ()
    text = " ".join(config.notices)
    for words in (
        "EllipseLabels name='p'",
        "name='lone'> has no <Labels>",
        "several pages",
        "name='b'> points at no",
        "name='e'> has no labels",
    ):
        assert words in text


def test_every_mask_tag_and_its_form_with_labels():
    config = parse_label_config(
        """<View><Image name="i" value="$x"/>
        <BitmaskLabels name="m" toName="i"><Label value="a"/></BitmaskLabels>
        <PolygonLabels name="p" toName="i"><Label value="a"/></PolygonLabels>
        <RectangleLabels name="r" toName="i"><Label value="a"/></RectangleLabels>
        <Brush name="b" toName="i"/><Labels name="l" toName="i"><Label value="b"/></Labels></View>"""
    )
    assert config.controls == (
        Control("m", "i", ("a",), kind="bitmasklabels"),
        Control("p", "i", ("a",), kind="polygonlabels"),
        Control("r", "i", ("a",), kind="rectanglelabels"),
        Control("b", "i", ("b",), kind="brush", labels_name="l"),
    )
    assert config.notices == ()


@pytest.mark.parametrize("path", sorted((ROOT / "label_config").glob("*.xml")), ids=lambda path: path.stem)
def test_the_bundled_configurations_are_understood(path: Path):
    config = parse_label_config(path.read_text())
    assert config.notices == ()
    assert {label for control in config.controls for label in control.labels} == {"Object", "Part"}


@pytest.mark.parametrize("xml", ["", "<View>", "not xml"])
def test_refuses_what_is_no_xml(xml: str):
    with pytest.raises(LabelConfigError, match="not valid XML"):
        parse_label_config(xml)


@pytest.mark.parametrize(
    ("expression", "data", "url"),
    [
        ("$image", {"image": "/data/1.png"}, "/data/1.png"),
        ("$scan.left", {"scan": {"left": "/l.png"}}, "/l.png"),
        ("$scan.left", {"scan.left": "/dotted.png"}, "/dotted.png"),
        ("$image", {"picture": "/1.png"}, None),
        ("$image", {"image": None}, None),
        ("$image", {"image": " "}, None),
        ("$scan.left", {"scan": "text"}, None),
        ("https://example.org/fixed.png", {}, "https://example.org/fixed.png"),
        ("", {}, None),
    ],
)
def test_finds_the_image_in_the_data(expression: str, data: dict, url: str | None):
    assert image_url(expression, data) == url
