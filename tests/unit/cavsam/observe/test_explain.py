"""The page of `cavsam explain`: its pictures and curves against pixels and numbers, and what the command refuses."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavsam import CavSam, Recipe, Reference, cli
from cavsam.diffusion import LatentDiffusion
from cavsam.observe.explain import Context, curves, pictures, render
from cavsam.observe.trace import Trace
from cavsam.scoring.calibration import Calibration, Logistic
from cavsam.tracking import Tracker
from cavsam.transition import DiffusionTransition
from cavsam.types import TargetResult
from cavsam.weights.sources import NAMES
from tests.support.candidates import ALL_KNOWN
from tests.support.tiny_models import blob_picture

pytestmark = pytest.mark.usefixtures("few_trees")

QUICK = Recipe().replace(frames=2, ddim_steps=1, lora_steps=2, lora_rank=2, ttga_steps=2)


def points(line: str) -> np.ndarray:
    return np.array([[float(number) for number in point.split(",")] for point in line.split()])


def test_a_curve_goes_through_its_losses() -> None:
    made = curves.curve("a fit", [3.0, 1.0, 2.0])
    x, y = points(made.points).T
    left, right = curves.LEFT, curves.WIDTH - curves.RIGHT
    np.testing.assert_allclose(x, [left, (left + right) / 2, right], atol=0.1)
    np.testing.assert_allclose(y[0], curves.TOP, atol=0.1)
    np.testing.assert_allclose(y[1], curves.HEIGHT - curves.BOTTOM, atol=0.1)
    np.testing.assert_allclose(y[2], (y[0] + y[1]) / 2, atol=0.1)
    # the ticks lie on the same scale
    slope = (y[1] - y[0]) / (1.0 - 3.0)
    for tick in made.values:
        assert tick.at == pytest.approx(y[0] + (float(tick.text) - 3.0) * slope, abs=0.2)
    assert (made.first, made.last) == (3.0, 2.0)


def test_a_long_curve_keeps_its_shape_in_fewer_points() -> None:
    losses = [float(step) for step in range(1, 2001)]
    made = curves.curve("long", losses)
    for line in (made.points, made.smooth):
        drawn = points(line)
        assert len(drawn) <= curves.MOST_POINTS
        assert (np.diff(drawn[:, 0]) > 0).all()
        assert (np.diff(drawn[:, 1]) <= 0).all()  # up, as the losses
    # a straight line stays straight
    x, y = points(made.points).T
    np.testing.assert_allclose(y, np.polyval(np.polyfit(x, y, 1), x), atol=0.2)


@pytest.mark.parametrize("losses", [[0.7], [0.7] * 9])
def test_a_flat_curve_lies_in_the_middle(losses: list[float]) -> None:
    y = points(curves.curve("flat", losses).smooth)[:, 1]
    np.testing.assert_allclose(y, (curves.TOP + curves.HEIGHT - curves.BOTTOM) / 2, atol=0.1)


def test_a_mask_is_filled_outlined_and_ends_at_its_edge(rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((120, 160), dtype=bool)  # of twice the size
    mask[20:60, 40:100] = True
    drawn = pictures.with_mask(picture, mask, (10, 20, 30))
    inside = np.zeros((60, 80), dtype=bool)
    inside[10:30, 20:50] = True
    np.testing.assert_array_equal(drawn[~inside], picture[~inside])
    assert (drawn[10, 20:50] == (10, 20, 30)).all()
    middle = np.abs(drawn[15:25, 25:45].astype(float) - (picture[15:25, 25:45] / 2.0 + np.array([5, 10, 15])))
    assert middle.max() <= 1
    empty = pictures.with_mask(picture, np.zeros((5, 5), dtype=bool), (10, 20, 30))
    np.testing.assert_array_equal(empty, picture)


def test_a_box_lies_where_it_was_given() -> None:
    picture = np.zeros((50, 100, 3), dtype=np.uint8)
    drawn = np.any(pictures.with_box(picture, (64.0, 128.0, 192.0, 256.0), 256, (9, 9, 9)), axis=2)
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max() + 1) == (25, 50)
    assert (columns.min(), columns.max() + 1) == (25, 75)
    assert not drawn[30:45, 30:70].any()


def test_a_point_is_a_dot_in_a_ring_where_it_was_given() -> None:
    picture = np.zeros((50, 100, 3), dtype=np.uint8)
    drawn = np.any(pictures.with_point(picture, (192.5, 128.5), 256, (9, 9, 9)), axis=2)
    rows, columns = np.nonzero(drawn)
    radius = (rows.max() - rows.min()) / 2
    assert 5 <= radius <= 12
    assert (rows.min() + radius, columns.min() + radius) == (25, 75)
    assert drawn[25, 75]
    assert not drawn[25, 75 + int(radius) // 2]


def test_a_heat_map_is_bright_where_its_value_is_high() -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[0, 3] = 1.0
    drawn = pictures.with_heat(np.full((64, 64, 3), 90, dtype=np.uint8), values, 0.0, 1.0).astype(int).sum(axis=2)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[0] < 16
    assert np.unravel_index(drawn.argmax(), drawn.shape)[1] >= 48
    assert drawn[:16, 48:].mean() > 1.5 * drawn[32:, :32].mean()


class _Page(HTMLParser):
    """Collects the pictures of each strip, every address, and the page's text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.strips: dict[str, list[np.ndarray]] = {}
        self.addresses: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self._strip: list[np.ndarray] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "tr":
            self._strip = self.strips.setdefault(values["data-strip"] or "", []) if "data-strip" in values else None
        if tag == "img" and self._strip is not None:
            encoded = (values["src"] or "").removeprefix("data:image/jpeg;base64,")
            self._strip.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def tracker(small_tracker: Tracker) -> Tracker:
    return small_tracker


@pytest.fixture
def page(tracker: Tracker, diffusion: LatentDiffusion, rng: np.random.Generator) -> tuple[_Page, str, Trace]:
    """Of a run with two labels, one of which looks like HTML."""
    blobs = blob_picture(rng, 200, 260)
    reference = Reference(blobs.image, {"<b>bright</b>": blobs.masks["bright"], "dark": blobs.masks["dark"]})
    target = blob_picture(rng, 256, 256).image
    model, trace = CavSam(tracker, DiffusionTransition(diffusion, QUICK), QUICK), Trace()
    adapted = model.adapt([reference], trace=trace)
    steps = len(trace.steps)
    (result,) = model.segment(adapted, [target], trace=trace)
    context = Context(reference, target, "ref.png", "<i>.png", result, QUICK, NAMES["nano"], "cpu", steps)
    html = render(trace, context)
    return _Page(html), html, trace


def test_the_page_needs_nothing_else(page: tuple[_Page, str, Trace]) -> None:
    parsed, html, _ = page
    assert parsed.addresses
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    assert len(html) < 10_000_000
    # labels and file names are text, whatever is in them
    assert not {"b", "i"} & set(parsed.tags)
    assert "<b>bright</b>" in parsed.text
    assert "<i>.png" in parsed.text


def test_the_strips_show_what_the_trace_holds(page: tuple[_Page, str, Trace]) -> None:
    parsed, _, trace = page
    (candidate,) = trace.candidates
    frames = parsed.strips["Pseudo video"]
    activations = [title for title in parsed.strips if title.startswith("Activation")]
    expected = {"Pseudo video", *activations, "full: prompts", "full: tracked masks", "full: backward tracking"}
    assert len(activations) == 2
    assert set(parsed.strips) == expected
    assert all(len(strip) == 4 for strip in parsed.strips.values())
    assert trace.target is not None
    given = (trace.target.permute(1, 2, 0) * 255).numpy()
    assert np.abs(frames[-1] - given).mean() < 8  # JPEG
    for title, masks in (("tracked masks", candidate.masks), ("backward tracking", candidate.backward[1])):
        at = 3 if title == "tracked masks" else 1
        changed = np.abs(parsed.strips[f"full: {title}"][at].astype(int) - frames[at]).max(axis=2) > 30
        shown = masks.any(dim=0).numpy()
        assert shown.any()
        # a JPEG is not exact around the edges, of which these masks have many
        assert changed[shown].mean() > 0.9
        assert changed[~shown].mean() < 0.2
    assert "no prompt: beyond the first 50%" in parsed.text
    assert "no prompt: the target is what is segmented" in parsed.text
    consistency = candidate.cues[1]["consistency"]
    assert f"dark: IoU {consistency:.3f} with the reference mask" in parsed.text
    assert "try-out models" in parsed.text
    for option in ("lora_steps", "ttga_steps", "seed"):
        assert option in parsed.text


def test_fits_without_steps_have_no_curve_and_modes_without_ttga_no_activation(
    tracker: Tracker, rng: np.random.Generator
) -> None:
    reference = blob_picture(rng, 100, 100)
    recipe = QUICK.replace(mode="concat")
    model, trace = CavSam(tracker, None, recipe), Trace()
    adapted = model.adapt([reference], trace=trace)
    (result,) = model.segment(adapted, [reference.image], trace=trace)
    context = Context(reference, reference.image, "a", "b", result, recipe, NAMES["default"], "cpu", len(trace.steps))
    parsed = _Page(render(trace, context))
    assert "Nothing was fitted" in parsed.text
    assert "polyline" not in parsed.tags
    assert "no activation to show" in parsed.text
    assert not any(title.startswith("Activation") for title in parsed.strips)
    assert "try-out models" not in parsed.text


def test_every_candidate_of_auto_has_its_strips(
    tracker: Tracker, diffusion: LatentDiffusion, rng: np.random.Generator
) -> None:
    reference = blob_picture(rng, 100, 100)
    recipe = QUICK.replace(mode="auto", auto_threshold=1.0)
    model, trace = CavSam(tracker, DiffusionTransition(diffusion, recipe), recipe, calibration=ALL_KNOWN), Trace()
    adapted = model.adapt([reference], trace=trace)
    (result,) = model.segment(adapted, [reference.image], trace=trace)
    context = Context(reference, reference.image, "a", "b", result, recipe, NAMES["nano"], "cpu", len(trace.steps))
    parsed = _Page(render(trace, context))
    lengths = {name: len(parsed.strips[f"{name}: tracked masks"]) for name in ("concat", "ttga", "full")}
    assert lengths == {"concat": 2, "ttga": 2, "full": 4}
    # what is read off the target alone has nothing to show before it
    assert "activation: tracked masks" not in parsed.strips
    assert "a ridge classifier of SAM2's features, fitted to the references" in parsed.text
    assert "the target's activation, its likeness to the references' prototype, is above its threshold" in parsed.text
    assert parsed.text.count("chosen") == len(result.scores)


def explained(model: CavSam, references: list[Reference], target: np.ndarray) -> tuple[_Page, Trace, TargetResult]:
    """The page of one target."""
    trace = Trace()
    adapted = model.adapt(references, trace=trace)
    (result,) = model.segment(adapted, [target], trace=trace)
    assert result.error is None
    context = Context(references[0], target, "a", "b", result, model.recipe, NAMES["nano"], "cpu", len(trace.steps))
    return _Page(render(trace, context)), trace, result


def test_points_are_shown_as_such(tracker: Tracker, rng: np.random.Generator) -> None:
    blobs = blob_picture(rng, 100, 100)
    reference = Reference(blobs.image, {"bright": blobs.masks["bright"]})
    recipe = QUICK.replace(mode="ttga", target_prompt="point")
    parsed, trace, _ = explained(CavSam(tracker, None, recipe), [reference], blobs.image)
    assert "mask, annotated" in parsed.text
    assert "point, from the activation" in parsed.text
    (point,) = (prompt.point for prompt in trace.candidates[0].prompts if prompt.point)
    strip = parsed.strips["ttga: prompts"]
    column, row = (int(value * strip[1].shape[0] / tracker.image_size) for value in point)
    dot = strip[1][row - 1 : row + 2, column - 1 : column + 2].astype(int)
    assert np.abs(dot - pictures.COLOURS[0]).max() < 60  # JPEG


def test_a_reference_before_the_first_prompt_is_not_visited(tracker: Tracker, rng: np.random.Generator) -> None:
    references = []
    for _ in range(2):
        blobs = blob_picture(rng, 100, 100)
        references.append(Reference(blobs.image, {"blob": blobs.masks["bright"] | blobs.masks["dark"]}))
    recipe = QUICK.replace(mode="concat", instances="split")
    parsed, trace, _ = explained(CavSam(tracker, None, recipe), references, references[0].image)
    (candidate,) = trace.candidates
    assert {prompt.frame for prompt in candidate.prompts} == {1}
    assert len(parsed.strips["concat: tracked masks"]) == 2  # of three frames
    assert "not visited: the first prompt lies on a later frame" in parsed.text
    assert "no prompt: the objects are those of the nearest reference" in parsed.text


def test_it_is_said_which_bound_a_dropped_mask_missed(tracker: Tracker, rng: np.random.Generator) -> None:
    blobs = blob_picture(rng, 100, 100)
    reference = Reference(blobs.image, {"bright": blobs.masks["bright"]})
    recipe = QUICK.replace(mode="concat")
    low = Calibration(overlap={"concat": Logistic(-3.0, {}, {})}, recipe=recipe.to_dict())
    absent = Calibration(presence={"concat": Logistic(-1.0, {}, {})})
    for bound, calibration, value in (
        ("score 0.047 < min_score 0.1", low, {"min_score": 0.1}),
        ("probability 0.269 that it is on the target < min_presence 0.5", absent, {"min_presence": 0.5}),
    ):
        model = CavSam(tracker, None, recipe.replace(**value), calibration=calibration)
        parsed, _, result = explained(model, [reference], blobs.image)
        assert not result.masks
        assert f"not found: the mask was dropped ({bound})" in parsed.text
        assert f"chosen, then dropped: {bound}" in parsed.text
        parsed, _, result = explained(CavSam(tracker, None, recipe, calibration=calibration), [reference], blobs.image)
        assert result.masks
        assert "dropped" not in parsed.text


def test_a_mask_that_other_labels_cover_is_no_mask_below_a_bound(tracker: Tracker, rng: np.random.Generator) -> None:
    blobs = blob_picture(rng, 100, 100)
    recipe = QUICK.replace(mode="concat", min_score=1.0)
    trace = Trace()
    model = CavSam(tracker, None, recipe)
    (result,) = model.segment(model.adapt([blobs], trace=trace), [blobs.image], trace=trace)
    result = replace(result, masks={"dark": result.masks["dark"]}, contested={("bright", "dark"): 0.9})
    context = Context(blobs, blobs.image, "a", "b", result, recipe, NAMES["nano"], "cpu", len(trace.steps))
    parsed = _Page(render(trace, context))
    assert "chosen, then dropped: other labels claim its pixels" in parsed.text
    assert "min_score 1" not in parsed.text


def test_a_trace_without_a_target_is_refused(rng: np.random.Generator) -> None:
    blobs = blob_picture(rng, 20, 20)
    context = Context(blobs, blobs.image, "a", "b", None, QUICK, NAMES["nano"], "cpu", 0)
    with pytest.raises(ValueError, match="no segmented target"):
        render(Trace(), context)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    blobs = blob_picture(rng, 60, 70)
    Image.fromarray(blobs.image).save(tmp_path / "reference.png")
    Image.fromarray(blobs.masks["bright"]).save(tmp_path / "mask.png")
    Image.fromarray(blobs.image[:, ::-1].copy()).save(tmp_path / "target.png")
    Image.new("L", (70, 60)).save(tmp_path / "empty.png")
    Image.new("L", (30, 40), 255).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "taken").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "absent.png"}, "no file absent.png"),
        ({"mask": "absent.png"}, "no file absent.png"),
        ({"target": "absent.png"}, "no file absent.png"),
        ({"target": "broken.png"}, "not a picture"),
        ({"mask": "empty.png"}, "empty"),
        ({"mask": "small.png"}, "30x40 pixels but its image has 70x60"),
        ({"out": "taken"}, "is a folder"),
        ({"out": "mask.png/report.html"}, "cannot be written"),
        ({"out": "/proc/report.html"}, "cannot be written"),
        ({"out": "target.png"}, "overwrite"),
        ({"--set": "speed=9"}, "no option 'speed'"),
        ({"--class-name": " "}, "class name is empty"),
        ({"--device": "cuda:77"}, "no device"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    names = {"reference": "reference.png", "mask": "mask.png", "target": "target.png", "out": "report.html", **changes}
    options = [text for name, value in changes.items() if name.startswith("--") for text in (name, value)]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    inputs = [names["reference"], names["mask"], names["target"]]
    assert cli.main(["explain", *inputs, "--out", names["out"], "--model", "nano", *options]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "try-out" not in line]
    assert len(said) == 1
    assert message in said[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
