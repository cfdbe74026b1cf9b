"""What the README and the pages for users show is true: examples run, commands and files exist."""

import json
import math
import re
import shlex
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

import offset_equivariant as oe
from offset_equivariant.composition import checked_run
from offset_equivariant.nn import check_equivariance
from offset_equivariant.performance.imagenet_cost import GPU, SUSTAINED_TFLOPS, gpu_hours
from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.records import find_records

ROOT = repository_root()
#: The README, and what it refers users to.
NAMES = ("LAYERS", "PHOTOS", "EXPERIMENTS", "DATA", "CLUSTER", "PERFORMANCE", "DEVIATIONS", "REPRODUCTION")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES)]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
README, EVERYTHING = TEXTS[PAGES[0]], "\n".join(TEXTS.values())


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_error_of_any_classifier_under_coloured_light():
    names: dict[str, Any] = {}
    exec(examples()[0], names)
    images = torch.randint(256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    coloured = oe.color.distort_srgb(images, oe.color.random_illuminants(0, range(64), 0.9), requantize=True)

    def of_means(srgb):  # its class is the brightest channel
        return srgb.mean((2, 3))

    labels = of_means(images).argmax(1)
    expected = 100 * (of_means(coloured).argmax(1) != labels).double().mean().item()
    assert names["error_percent"](of_means, images, labels, 0.0) == 0
    assert names["error_percent"](of_means, images, labels, 0.9) == expected > 30


def test_images_can_be_balanced_or_shown_under_random_light():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"oe": oe, "torch": torch, "srgb": images}
    exec(examples()[1], names)
    means = oe.color.srgb_to_linear(names["balanced"]).mean((1, 2, 3))
    assert (means > 0.2).all() and (means < 0.25 + 1e-6).all()  # but for what was clipped
    gains = oe.color.srgb_to_linear(names["srgb"]) / oe.color.srgb_to_linear(images)
    light = gains.mean((2, 3), keepdim=True)
    torch.testing.assert_close(gains, light.expand_as(gains), rtol=1e-3, atol=1e-3)  # one number a channel
    torch.testing.assert_close(light.amax(1).flatten(), torch.ones(4), rtol=1e-3, atol=0)


def test_the_example_is_equivariant(capsys):
    names: dict[str, Any] = {}
    exec(examples()[2], names)
    assert "float64" in capsys.readouterr().out
    network = names["net"]
    assert check_equivariance(network.features, (2, 3, 32, 32), output="mean").worst() < 1e-12
    srgb = torch.rand(2, 3, 32, 32)
    assert network(srgb).shape == (2, 10)


def test_what_is_said_of_inference():
    """Behind the conversion of colours, with BatchNormReLU, a network can be folded."""
    said = "`oe.nn.fuse_for_inference` folds the running statistics of `BatchNormReLU` into the convolutions"
    assert said in " ".join(EVERYTHING.split())
    features = nn.Sequential(oe.nn.Conv2d(3, 33, 3, padding=1), oe.nn.BatchNormReLU(33), oe.nn.MaxPool2d(2))
    images = torch.rand(2, 3, 8, 8)
    features(images)
    folded = oe.nn.fuse_for_inference(features)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), features.eval()(images), rtol=0, atol=1e-5)


def compose_words(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", words)


def test_the_estimate_of_gpu_hours_is_the_committed_one():
    found = json.loads((ROOT / "results" / "costs" / "imagenet.json").read_text())
    hours = gpu_hours(found)
    text = " ".join(EVERYTHING.split())
    assert f"{hours['original']['training']:.0f} GPU-hours on an A100 for the original network" in text
    assert f"and {hours['equivariant']['training']:.0f} for the equivariant one" in text
    assert f"an assumed {SUSTAINED_TFLOPS:.0f} TFLOP/s" in text and "A100" in GPU


def test_what_captions_say_of_trainings_is_so():
    text = " ".join(README.split())
    recipes = {
        name: compose_words([f"experiment={name}"])
        for name in ("table1_equivariant", "table2_imagenette_equivariant", "table4_facades_equivariant")
    }
    epochs = {name: recipe.train.epochs for name, recipe in recipes.items()}
    assert f"with `train=fast` ({epochs['table1_equivariant']} epochs)" in text
    size = recipes["table2_imagenette_equivariant"].dataset.options.size
    eight = {8: "eight"}[epochs["table2_imagenette_equivariant"]]
    assert f"ResNet-50 after {eight} epochs on images of {size} × {size} pixels." in text
    assert f"in place of Paris Street View, after {epochs['table4_facades_equivariant']} epochs:" in text
    cerberus = [record for record in find_records(ROOT / "results", 3) if record.row in ("original", "equivariant")]
    seeds = {3: "three"}[len(cerberus) // 2]
    assert f"Color Cerberus, mean of {seeds} seeds with a band" in text
    largest = math.degrees(math.acos(3**-0.5))
    assert f"the error is {largest:.1f}°, the largest there is." in text
    for record in cerberus:
        assert record.metrics["median_reproduction_error_degrees"]["1.0"] == pytest.approx(largest, abs=0.05)


def test_settings_that_are_added_are_valid():
    added = re.findall(r"`(\+?(?:model|strategy)\.[a-z_.]+=[a-z0-9.]+)`", EVERYTHING)
    assert len(added) >= 2
    for word in added:
        experiment = "table1_equivariant" if "model" in word else "table1_preprocessing_grey_world"
        checked_run(compose_words([f"experiment={experiment}", word]))


def test_commands_experiments_and_links_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z0-9-]+[a-z0-9])(?![<a-z0-9-])", EVERYTHING)) <= targets
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    shown = set(re.findall(r"`(table[1-4]_[a-z_]+)`", EVERYTHING))
    assert shown == {name for name in experiments if name.startswith("table")}
    commands = re.findall(r"^(?:python|torchrun .*) -m offset_equivariant ((?:.*\\\n)*.*)$", EVERYTHING, re.M)
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        # A multirun's words, each with its first value.
        checked_run(compose_words([word.split(",")[0] for word in words if word != "-m"]))
    for page, text in TEXTS.items():
        links = re.findall(r"\]\(((?!http|#)[^)#]+)\)", text)
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_links_lead_to_headings():
    """GitHub's anchors: lower case, spaces as hyphens, without punctuation."""
    for page, text in TEXTS.items():
        for link, anchor in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", text):
            target = (page.parent / link) if link else page
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page}: {link}#{anchor}"
