from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import LabelConfigError
from backend.labelstudio.label_config import Control, image_url, parse_label_config

ROOT = Path(__file__).parents[4]


def test_reads_the_bundled_configuration():
    config = parse_label_config((ROOT / "label_config" / "brush.xml").read_text())
    (control,) = config.controls
    assert control.to_name == "image"
    assert len(control.labels) == 2
    assert config.images == {"image": "$image"}
    assert config.warnings == ()


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
    assert config.warnings == ()
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
    text = " ".join(config.warnings)
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
    assert config.warnings == ()


MASKS = '<BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels>'


def with_image(*tags: str) -> str:
    return f"""<View><Image name="i" value="$x"/>{"".join(tags)}</View>"""


def test_smart_tools_beside_a_mask_tag_are_prompts_and_ellipses_are_hints():
    config = parse_label_config(
        with_image(
            '<RectangleLabels name="r" toName="i" smart="true"><Label value="a"/></RectangleLabels>',
            MASKS,
            '<KeyPointLabels name="k" toName="i" smartOnly="true"><Label value="a"/></KeyPointLabels>',
            '<EllipseLabels name="e" toName="i"><Label value="a"/></EllipseLabels>',
        )
    )
    assert config.warnings == ()
    assert [control.name for control in config.controls] == ["b"]
    assert [control.name for control in config.prompts] == ["r", "k"]
    assert config.hint("e", "i") == Control("e", "i", ("a",), kind="ellipselabels")
    assert config.is_prompt("k", "i")
    assert not config.is_prompt("b", "i")


def test_a_rectangle_that_is_not_smart_or_stands_alone_is_a_mask():
    plain = '<RectangleLabels name="r" toName="i"><Label value="a"/></RectangleLabels>'
    smart = '<RectangleLabels name="r" toName="i" smart="true"><Label value="a"/></RectangleLabels>'
    assert [c.name for c in parse_label_config(with_image(MASKS, plain)).controls] == ["b", "r"]
    assert [c.name for c in parse_label_config(with_image(smart)).controls] == ["r"]


def test_points_that_are_no_clicks_and_labels_without_a_mask_tag_are_told():
    config = parse_label_config(
        with_image(
            MASKS,
            '<KeyPointLabels name="k" toName="i"><Label value="a"/></KeyPointLabels>',
            '<EllipseLabels name="e" toName="i"><Label value="a"/><Label value="z"/></EllipseLabels>',
        )
    )
    points, labels = config.warnings
    assert "KeyPointLabels name='k'" in points
    assert 'smart="true"' in points
    assert "EllipseLabels name='e'" in labels
    assert labels.endswith("'z'.")


def test_of_several_mask_tags_a_brush_takes_the_mask():
    config = parse_label_config(
        with_image('<PolygonLabels name="p" toName="i"><Label value="a"/><Label value="only"/></PolygonLabels>', MASKS)
    )
    assert config.mask_control("i", "a") == config.control("b", "i")
    assert config.mask_control("i", "only") == config.control("p", "i")
    assert config.mask_control("i", "none") is None
    assert config.mask_control("elsewhere", "a") is None


@pytest.mark.parametrize("path", sorted((ROOT / "label_config").glob("*.xml")), ids=lambda path: path.stem)
def test_the_bundled_configurations_are_understood(path: Path):
    config = parse_label_config(path.read_text())
    assert config.warnings == ()
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


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            '<Brush name="b" toName="image"/>' * 30
            + '<Labels name="l" toName="image"><Label value="a"/></Labels>' * 30,
            "control tags",
        ),
        ('<BrushLabels name="b" toName="image">' + '<Label value="a"/>' * 5001 + "</BrushLabels>", "labels"),
        (" " * 1_000_001, "characters"),
    ],
)
def test_a_configuration_that_would_take_minutes_is_refused(tags: str, words: str):
    with pytest.raises(LabelConfigError, match=words):
        parse_label_config(f'<View><Image name="image" value="$image"/>{tags}</View>')
