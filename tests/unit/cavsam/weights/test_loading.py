"""Loading: strict, from files and folders made here, and clear about what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from cavsam.diffusion import LatentDiffusion
from cavsam.errors import ModelError
from cavsam.recipe import Recipe
from cavsam.scoring.calibration import Calibration, Logistic
from cavsam.tracking import Tracker
from cavsam.transition import fit_images, frames_between, invert
from cavsam.weights.files import SAM2_CHECKPOINTS
from cavsam.weights.loading import (
    SAM2_PACKAGE,
    build_sam2,
    download,
    find_diffusion,
    find_sam2,
    load_calibration,
    load_diffusion,
    load_tracker,
    select_device,
)
from cavsam.weights.sources import NANO, ModelSources, sam2_digest
from research.rehearsal import published_names
from tests.support.tiny_models import Touch, save_diffusion

CPU = torch.device("cpu")
NANO_CONFIG = str(NANO / "sam2" / "sam2_nano.yaml")


@pytest.fixture
def checkpoints(tracker: Tracker, tmp_path: Path) -> dict[str, Path]:
    """The same weights as Meta stores them, as safetensors, and in half precision."""
    weights = tracker.predictor.state_dict()
    paths = {"pt": tmp_path / "mine.pt", "safetensors": tmp_path / "mine.safetensors"}
    torch.save({"model": weights}, paths["pt"])
    save_file({name: tensor.contiguous().half() for name, tensor in weights.items()}, paths["safetensors"])
    return paths


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_checkpoint_file_loads_strictly(tracker: Tracker, checkpoints: dict[str, Path], kind: str) -> None:
    loaded = load_tracker(ModelSources(sam2=str(checkpoints[kind]), sam2_config=NANO_CONFIG), CPU)
    expected = tracker.predictor.state_dict()
    for name, tensor in loaded.predictor.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(
            tensor, expected[name], atol=0 if kind == "pt" else 1e-2, rtol=0 if kind == "pt" else 1e-3
        )
    assert not loaded.predictor.training
    assert not any(parameter.requires_grad for parameter in loaded.predictor.parameters())


def test_a_folder_with_configuration_beside_the_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    checkpoints["pt"].rename(folder / "mine.pt")
    (folder / "mine.yaml").write_text(Path(NANO_CONFIG).read_text())
    assert find_sam2(ModelSources(sam2=str(folder))) == (folder / "mine.pt", folder / "mine.yaml")


def test_a_published_checkpoint_finds_its_configuration_by_name(tmp_path: Path) -> None:
    for stem, config in SAM2_CHECKPOINTS.items():
        file = tmp_path / stem / f"{stem}.pt"
        file.parent.mkdir()
        file.touch()
        (file.parent / "model.safetensors").touch()  # the hub's repositories hold a second copy under another name
        for source in (file, file.parent):
            assert find_sam2(ModelSources(sam2=str(source))) == (file, SAM2_PACKAGE / config)


@pytest.mark.parametrize("stem", ["sam2_hiera_tiny", "sam2.1_hiera_tiny"])
def test_a_published_configuration_builds_the_predictor_with_metas_defaults(stem: str) -> None:
    from sam2.build_sam import build_sam2_video_predictor

    config = SAM2_CHECKPOINTS[stem]
    theirs = build_sam2_video_predictor(config, None, device="cpu")
    ours = build_sam2(SAM2_PACKAGE / config, None).eval()
    assert type(ours) is type(theirs)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes

    def settings(model: torch.nn.Module) -> dict[str, object]:
        plain = (bool, int, float, str, type(None))
        return {
            f"{name}.{key}": value
            for name, part in [("", model), ("decoder", model.sam_mask_decoder)]
            for key, value in vars(part).items()
            if isinstance(value, plain)
        }

    assert settings(ours) == settings(theirs) | {".fill_hole_area": 0}


def test_wrong_configuration_is_named(tmp_path: Path) -> None:
    torch.save(
        {"model": build_sam2(SAM2_PACKAGE / SAM2_CHECKPOINTS["sam2_hiera_tiny"], None).state_dict()}, tmp_path / "x.pt"
    )
    sources = ModelSources(sam2=str(tmp_path / "x.pt"), sam2_config=SAM2_CHECKPOINTS["sam2.1_hiera_tiny"])
    with pytest.raises(ModelError, match=r"x\.pt does not fit .*2\.0 and 2\.1"):
        load_tracker(sources, CPU)


def test_broken_and_missing_checkpoints_say_so(tmp_path: Path) -> None:
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 100)
        with pytest.raises(ModelError, match="not a SAM2 checkpoint"):
            load_tracker(ModelSources(sam2=str(tmp_path / name), sam2_config=NANO_CONFIG), CPU)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "trainer.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name in ("trainer.pt", "text.pt"):
        with pytest.raises(ModelError, match="not a SAM2 checkpoint") as caught:
            load_tracker(ModelSources(sam2=str(tmp_path / name), sam2_config=NANO_CONFIG), CPU)
        assert "\n" not in str(caught.value)
    cases = {
        "weights/mine.pt": "no SAM2 checkpoint",
        str(tmp_path / "absent.pt"): "no SAM2 checkpoint",
        str(tmp_path): "one SAM2 checkpoint",
        str(tmp_path / "broken.pt"): "does not tell its configuration",
        "someone/else": "not a SAM2 model on the hub",
    }
    for source, message in cases.items():
        with pytest.raises(ModelError, match=message):
            find_sam2(ModelSources(sam2=source))
    with pytest.raises(ModelError, match="no SAM2 configuration"):
        find_sam2(ModelSources(sam2=str(tmp_path / "broken.pt"), sam2_config="nowhere.yaml"))
    (tmp_path / "odd.yaml").write_text("model: {_target_: sam2.nothing.Here}\n")
    with pytest.raises(ModelError, match="not a configuration"):
        load_tracker(ModelSources(sam2=str(tmp_path / "broken.pt"), sam2_config=str(tmp_path / "odd.yaml")), CPU)


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_sentence_says_what_to_do() -> None:
    sources = ModelSources.named("default")
    for load in (find_sam2, find_diffusion, download):
        with pytest.raises(ModelError, match="cavsam download") as caught:
            load(sources)
        assert str(caught.value).count("\n") == 0


def test_a_diffusion_folder_loads_and_predicts_the_same(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    save_diffusion(diffusion, tmp_path)
    loaded = load_diffusion(ModelSources(diffusion=str(tmp_path)), CPU)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["cell", "a road"]
    with torch.no_grad():
        expected = diffusion.predict(latents, 100, diffusion.embed(prompts))
        torch.testing.assert_close(loaded.predict(latents, 100, loaded.embed(prompts)), expected)
    # the schedule is read from another kind of scheduler, without the settings that break an inversion
    schedule = DDIMScheduler.from_config(loaded.schedule)
    torch.testing.assert_close(schedule.alphas_cumprod, DDIMScheduler.from_config(diffusion.schedule).alphas_cumprod)
    assert not schedule.config.clip_sample


def assert_same_weights(loaded: LatentDiffusion, expected: LatentDiffusion, *, half: bool) -> None:
    for name in ("vae", "unet", "text_encoder"):
        tensors = getattr(loaded, name).state_dict()
        wanted = getattr(expected, name).state_dict()
        assert tensors.keys() == wanted.keys()
        for key, tensor in tensors.items():
            exact = wanted[key].half().float() if half and wanted[key].is_floating_point() else wanted[key]
            assert torch.equal(tensor, exact), f"{name}.{key}"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_diffusion_folder_of_any_format_loads(
    diffusion: LatentDiffusion, tmp_path: Path, half: bool, pickled: bool
) -> None:
    save_diffusion(diffusion, tmp_path, half=half, pickled=pickled)
    assert_same_weights(load_diffusion(ModelSources(diffusion=str(tmp_path)), CPU), diffusion, half=half)


def test_a_folder_of_the_older_published_names_loads(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    """The published folders name the VAE's attention and the text encoder's tensors as older libraries did."""
    save_diffusion(diffusion, tmp_path)
    names: set[str] = set()
    for part in ("vae", "unet", "text_encoder"):
        file = next((tmp_path / part).glob("*.safetensors"))
        renamed = published_names(part, load_file(file))
        save_file(renamed, file, {"format": "pt"})
        names |= renamed.keys()
    assert {
        "decoder.mid_block.attentions.0.query.weight",
        "encoder.mid_block.attentions.0.proj_attn.bias",
        "text_model.embeddings.token_embedding.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    } <= names
    assert_same_weights(load_diffusion(ModelSources(diffusion=str(tmp_path)), CPU), diffusion, half=False)


def test_full_precision_and_safetensors_go_first(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    for half, pickled in ((True, True), (False, True), (True, False), (False, False)):
        save_diffusion(diffusion, tmp_path / "one", half=half, pickled=pickled)
        for file in (tmp_path / "one").rglob("*"):
            if file.is_file():
                kept = tmp_path / "all" / file.relative_to(tmp_path / "one")
                kept.parent.mkdir(parents=True, exist_ok=True)
                file.rename(kept)
    worse = [*(tmp_path / "all").rglob("*.bin"), *(tmp_path / "all").rglob("*.fp16.safetensors")]
    assert len(worse) == 9  # of three parts: fp16, pickled, and both
    for wrong in worse:
        wrong.write_bytes(b"never read")
    assert_same_weights(load_diffusion(ModelSources(diffusion=str(tmp_path / "all")), CPU), diffusion, half=False)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_pickle_runs_no_code(diffusion: LatentDiffusion, tmp_path: Path, part: str) -> None:
    save_diffusion(diffusion, tmp_path / "model", pickled=True)
    weights = next((tmp_path / "model" / part).glob("*.bin"))
    torch.save({**torch.load(weights), "code": Touch(tmp_path / "touched")}, weights)
    with pytest.raises(ModelError, match=f"{part} cannot be loaded"):
        load_diffusion(ModelSources(diffusion=str(tmp_path / "model")), CPU)
    assert not (tmp_path / "touched").exists()


def test_weights_for_another_library_are_named(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    save_diffusion(diffusion, tmp_path)
    next((tmp_path / "unet").glob("*.safetensors")).rename(tmp_path / "unet" / "diffusion_flax_model.msgpack")
    with pytest.raises(ModelError, match=r"no weights that can be read, only config\.json, diffusion_flax_model"):
        load_diffusion(ModelSources(diffusion=str(tmp_path)), CPU)


@pytest.mark.parametrize(("half", "pickled"), [(False, False), (True, False), (False, True)])
def test_of_a_hub_repository_no_more_is_fetched_than_is_read(
    diffusion: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, pickled: bool
) -> None:
    """The hub is played by a folder; what its client fetches by patterns is copied."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    save_diffusion(diffusion, hub, half=half, pickled=pickled)
    unread = ["flax_model.msgpack", "vae/other.onnx", "safety_checker/model.safetensors", "README.md"]
    if not half and not pickled:
        unread += ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    for name in unread:
        (hub / name).parent.mkdir(exist_ok=True)
        (hub / name).write_bytes(b"gigabytes")

    def snapshot_download(hub_id: str, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        names = [file.relative_to(hub).as_posix() for file in hub.rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / name, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert_same_weights(load_diffusion(ModelSources(diffusion="someone/model"), CPU), diffusion, half=half)
    fetched = {file.relative_to(cache).as_posix() for file in cache.rglob("*") if file.is_file()}
    assert fetched == {file.relative_to(hub).as_posix() for file in hub.rglob("*") if file.is_file()} - set(unread)


def test_an_incomplete_diffusion_folder_says_what_is_missing(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    save_diffusion(diffusion, tmp_path)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="unet cannot be loaded"):
        load_diffusion(ModelSources(diffusion=str(tmp_path)), CPU)
    with pytest.raises(ModelError, match="no vae/"):
        load_diffusion(ModelSources(diffusion=str(tmp_path / "unet")), CPU)
    with pytest.raises(ModelError, match="no diffusion model"):
        load_diffusion(ModelSources(diffusion=str(tmp_path / "absent")), CPU)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "nonsense"])
def test_a_device_that_is_not_there_says_so(name: str) -> None:
    with pytest.raises(ModelError, match="no device"):
        select_device(name)
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type in ("cpu", "cuda", "mps")


def test_the_calibration_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sam2.1_hiera_tiny.pt"
    checkpoint.write_bytes(b"not read")
    for sources in (ModelSources(sam2=str(checkpoint)), ModelSources(sam2=str(tmp_path))):
        assert load_calibration(sources) == Calibration()
    fitted = Calibration({"concat": Logistic(0.5, {"cycle": 1.0}, {"cycle": 0.1})}, {}, "here")
    fitted.save(tmp_path / "calibration.json")
    for sources in (ModelSources(sam2=str(checkpoint)), ModelSources(sam2=str(tmp_path))):
        assert load_calibration(sources) == fitted
    other = tmp_path / "other.json"
    Calibration(fitted="there").save(other)
    assert load_calibration(ModelSources(sam2=str(checkpoint), calibration=str(other))).fitted == "there"
    (tmp_path / "calibration.json").write_text("[]")
    with pytest.raises(ModelError, match="calibration"):
        load_calibration(ModelSources(sam2=str(tmp_path)))


def test_a_calibration_of_other_weights_or_of_none_is_refused(tmp_path: Path) -> None:
    checkpoint, file = tmp_path / "sam2.1_hiera_tiny.pt", tmp_path / "mine.json"
    checkpoint.write_bytes(b"weights")
    sources = ModelSources(sam2=str(checkpoint), calibration=str(file))
    with pytest.raises(ModelError, match=r"no calibration .*mine\.json"):
        load_calibration(sources)
    fitted = Calibration(fitted="here", sam2=sam2_digest(sources))
    fitted.save(file)
    assert load_calibration(sources) == fitted
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(ModelError, match="fitted for other weights"):
        load_calibration(sources)


def test_frozen_weights_in_bfloat16_leave_adapters_in_float32(diffusion: LatentDiffusion, tmp_path: Path) -> None:
    save_diffusion(diffusion, tmp_path)
    sources = ModelSources(diffusion=str(tmp_path))
    exact, small = load_diffusion(sources, CPU), load_diffusion(sources, CPU, "bfloat16-weights")
    kinds = {name: {one.dtype for one in getattr(small, name).parameters()} for name in ("unet", "text_encoder", "vae")}
    assert kinds == {"unet": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}}
    recipe = Recipe(lora_steps=10, lora_rank=2, lora_lr=1e-3, frames=2, ddim_steps=2)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, found = (fit_images(model, images, "cell", recipe) for model in (exact, small))
    for one, other in zip(wanted, found, strict=True):
        assert {tensor.dtype for tensor in other.adapter.parameters()} == {torch.float32}
        assert any(tensor.abs().sum() > 0 for tensor in other.adapter.up.values())  # it did learn
        torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(one.losses), rtol=0.05, atol=0)
    frames = []
    for model, fitted in ((exact, wanted), (small, found)):
        first, second = (invert(model, one, recipe) for one in fitted)
        frames.append(frames_between(model, first, second, recipe))
    assert (frames[0] - frames[1]).abs().mean() < 0.02
