"""The model card: what hubs read of it, what people read of it, and that every number is the run's
own.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import binomtest

from raysft.job import Job
from raysft.results.model import ModelCard, deliver
from raysft.results.predict import Classifier
from raysft.results.readme import ModelFacts, model_readme, wilson_interval
from raysft.train.modeling import create_network

HOSTILE = (
    "a|b",
    "---",
    "line\nbreak",
    "# heading",
    "`code` ``two``",
    "<script>alert(1)</script>",
    "![x](http://x.y/z)",
    "*bold* _it_",
    "\\",
    "{{x}}: [1]",
    "torn \udc80 name",
    "\u202eright to left",
    " ",
    "naïve 猫",
    "@everyone",
    "key: value",
    "'\"",
    "&amp;",
)


def a_job(**sections) -> Job:
    return Job.model_validate(
        {
            "data": {"source": "imagefolder", "path": "/home/someone/private/photos"},
            "train": {
                "epochs": 6,
                "batch_size": 48,
                "label_smoothing": 0.1,
                "schedule": {"name": "cosine", "warmup_epochs": 1},
                "augment": {"flip": True, "crop_padding": 2},
            },
            "model": {"name": "resnet18", "weights": "none"},
            "resources": {"workers": 2},
        }
        | sections
    )


SEARCH = {"trials": 3, "space": {"optimizer": ["sgd"]}, "metric": "val_macro_f1"}
SCORES = {
    "val_accuracy": 0.96531,
    "val_loss": 0.21,
    "val_macro_f1": 0.9531,
    "test_accuracy": 342 / 360,
    "test_loss": 0.25012,
    "test_macro_f1": 0.94123,
}


def a_card(classes=("ant", "bee", "cow"), architecture="resnet18", **provenance) -> ModelCard:
    known = {
        "run": "r-1",
        "trial": "t2",
        "epoch": 5,
        "config": {"optimizer": {"name": "sgd", "lr": 0.0316}},
        "versions": {"python": "3.11.2", "torch": "2.15.0"},
        "git": "0123abc-dirty",
        "data": "f" * 64,
        "seed": 7,
    } | provenance
    return ModelCard(
        architecture,
        tuple(classes),
        32,
        40,
        (0.48, 0.45, 0.4),
        (0.23, 0.22, 0.25),
        SCORES,
        known,
        64,
        "bicubic",
    )


def known_of(job: Job, **more) -> ModelFacts:
    trials = [{"status": status} for status in ("finished", "stopped", "stopped")]
    return ModelFacts(
        job,
        "val_macro_f1",
        {"train": 1200, "val": 133, "test": 360},
        (700, 420, 80),
        12,
        trials,
        **more,
    )


def parts(text: str) -> tuple[dict, str]:
    """(front matter as hubs find it, the rest)"""
    found = re.match(
        r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", text
    )  # as huggingface_hub does
    assert found is not None
    return yaml.safe_load(found[2]), text[found.end() :]


def table(body: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose header begins with `first`, by their first cell."""
    lines = body.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows: dict[str, list[str]] = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows[name] = cells
    return rows


def test_hubs_find_what_they_look_for():
    matter, _ = parts(model_readme(a_card(), known_of(a_job(search=SEARCH))))
    assert matter["library_name"] == "raysft"
    assert matter["pipeline_tag"] == "image-classification"
    assert {"image-classification", "torchvision", "resnet18"} <= set(matter["tags"])
    assert matter["metrics"] == ["accuracy", "loss", "f1"]
    assert not {"license", "datasets"} & set(matter)  # neither is known
    (model,) = matter["model-index"]
    (result,) = model["results"]
    assert model["name"] == "r-1"
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "photos", "type": "imagefolder", "split": "test"}
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {"accuracy": 342 / 360, "loss": 0.25012, "f1": 0.94123}


def test_the_hub_s_own_library_reads_it():
    hub = pytest.importorskip("huggingface_hub")
    found = hub.ModelCard(model_readme(a_card(), known_of(a_job(search=SEARCH)))).data
    assert found.model_name == "r-1"
    assert {result.metric_type: result.metric_value for result in found.eval_results}[
        "accuracy"
    ] == 342 / 360
    assert found.pipeline_tag == "image-classification"


def test_known_data_set_has_its_hub_name():
    matter, body = parts(model_readme(a_card(), known_of(a_job(data={"source": "cifar10"}))))
    assert matter["datasets"] == ["uoft-cs/cifar10"]
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == "CIFAR-10"
    assert "on CIFAR-10" in body


def test_every_number_is_that_of_the_run():
    card = a_card()
    confirmed = {"metric": "val_macro_f1", "seeds": [7, 8, 9], "mean": 0.95, "std": 0.0123}
    weights = {"loaded": 120, "new": ["fc.weight", "fc.bias"]}
    job = a_job(
        search=SEARCH,
        model={"name": "resnet18", "weights": "https://me:secret@host/dir/w.pth#sha256=0f"},
    )
    _, body = parts(
        model_readme(
            card,
            known_of(
                job,
                weights=weights,
                confirmed=confirmed,
                recall={"ant": 0.99, "bee": 0.875, "cow": 0.9},
            ),
        )
    )
    assert table(body, "metric") == {
        "accuracy": ["0.9653", "0.9500"],
        "loss": ["0.2100", "0.2501"],
        "macro f1": ["0.9531", "0.9412"],
    }
    assert table(body, "split") == {"training": ["1,200"], "validation": ["133"], "test": ["360"]}
    assert table(body, "class") == {"ant": ["700"], "bee": ["420"], "cow": ["80"]}
    interval = binomtest(342, 360).proportion_ci(method="wilson")
    for said in (
        f"between {interval.low:.4f} and {interval.high:.4f} (95 % confidence, Wilson",
        "of 360 images",
        "12 unreadable images were left out",
        "cover 32 × 40 pixels",
        "(0.48, 0.45, 0.4)",
        "resized to 64 × 64 (bicubic)",
        f"`{'f' * 64}`",
        "w.pth (120 tensors loaded, 2 new)",
        "sgd, highest rate 0.0316",
        "momentum 0.9",
        "cosine, warmup epochs 1",
        "6 at most; delivered is epoch 5",
        "48 images a step, over 2 workers",
        "flip, crop padding 2",
        "label smoothing 0.1",
        "3 trials, random, halving could end them early (1 finished, 2 stopped)",
        "picked trial t2",
        "over 3 seeds its `val_macro_f1` is 0.9500 ± 0.0123",
        "the fewest training images: cow (80), bee (420).",
        "lowest recall on the test images: bee (0.8750)",
        "not tested on any other data",
        "Run `r-1`, trial `t2`, epoch 5, seed 7",
        "`0123abc-dirty`",
        "python 3.11.2, torch 2.15.0",
    ):
        assert said in body, said
    assert "secret" not in body
    assert "someone" not in body


def test_what_is_not_known_is_left_out():
    card = replace(
        a_card(git=None), scores={"val_macro_f1": 0.5, "test_loss": float("nan")}, image_size=None
    )
    known = replace(known_of(a_job()), skipped=0, class_rows=(400, 400, 400), rows={"train": 1200})
    matter, body = parts(model_readme(card, known))
    assert matter["model-index"][0]["results"][0]["metrics"] == []
    assert table(body, "metric") == {"macro f1": ["0.5000", ""]}
    assert table(body, "split") == {"training": ["1,200"]}
    assert "One trial, no search; `val_macro_f1` picked its epoch" in body
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    for absent in (
        "Wilson",
        "unreadable",
        "resized",
        "Git",
        "recall",
        "fewest",
        " nan",
        "None",
        "halving",
        "seeds",
    ):
        assert absent not in prose, absent


def test_hostile_names_break_neither_yaml_nor_markdown():
    job = a_job(data={"source": "imagefolder", "path": "/x/a: b\n---\n| ```"})
    counts = tuple(range(100, 100 + len(HOSTILE)))
    known = replace(known_of(job), class_rows=counts)
    plain = [f"class {i}" for i in range(len(HOSTILE))]
    quiet, loud = (
        model_readme(a_card(names, architecture="own.nets:`x`|y", run="---\n: {"), known)
        for names in (plain, HOSTILE)
    )
    loud.encode()
    matter, body = parts(loud)
    assert matter == parts(quiet)[0]
    assert matter["model-index"][0]["name"] == "--- : {"
    rows = table(body, "class")
    assert [cells for cells in rows.values()] == [[f"{count}"] for count in counts]
    assert rows["a\\|b"] == ["100"]
    assert "\\<script\\>" in body
    assert "<script>" not in body
    assert len(body.splitlines()) == len(parts(quiet)[1].splitlines())
    rendered = pytest.importorskip("markdown_it").MarkdownIt().enable("table").render(body)
    assert rendered.count("<td") == 2 * len(HOSTILE) + 2 * 3 + 3 * 3
    assert rendered.count("<h2>") == 6
    assert "<script>" not in rendered
    assert "<img" not in rendered
    assert "href" not in rendered


def test_many_classes_do_not_flood_the_card():
    known = replace(known_of(a_job()), class_rows=(5,) * 1000)
    _, body = parts(model_readme(a_card([f"c{i}" for i in range(1000)]), known))
    assert len(table(body, "class")) == 100
    assert "900 more classes are in `model.json`" in body


@pytest.mark.parametrize(
    ("right", "images"), [(0, 20), (20, 20), (342, 360), (1, 2), (99999, 100000)]
)
def test_the_interval_is_wilson_s(right, images):
    interval = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson_interval(right, images) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.slow
def test_its_program_answers_as_the_model_does(tmp_path):
    torch.manual_seed(0)
    card = a_card()
    net = create_network("resnet18", 3)
    with torch.no_grad():
        for _ in range(10):
            net.train()(torch.randn(8, 3, 64, 64))
    (tmp_path / "weights").mkdir()
    save_file(net.state_dict(), tmp_path / "weights/model.safetensors")
    deliver(tmp_path / "model", tmp_path / "weights", card, model_readme(card, known_of(a_job())))
    readme = (tmp_path / "model/README.md").read_text()
    low = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(low).resize((90, 70), Image.Resampling.BICUBIC).save(
        tmp_path / "model/image.jpg"
    )
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    program += 'import sys\nassert not {"ray", "raysft"} & set(sys.modules)\n'
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path / "model",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.split()
    expected = (
        Classifier(tmp_path / "model").predict([str(tmp_path / "model/image.jpg")])[0].classes[0]
    )
    assert name == expected[0]
    assert float(probability) == pytest.approx(expected[1], abs=1e-4)
    assert json.loads(Path(tmp_path / "model/model.json").read_text())["classes"] == [
        "ant",
        "bee",
        "cow",
    ]


def test_data_notes_are_plain_text():
    notes = ("train from <b>Training</b>/", "9 files seen, 9 used")
    known = replace(known_of(a_job()), class_rows=(400, 400, 400), notes=notes)
    text = model_readme(a_card(), known)
    assert "- 9 files seen, 9 used" in text
    assert "<b>" not in text


def test_own_network_names_its_module_and_option():
    card, known = a_card(architecture="own.nets:make"), known_of(a_job())
    readme = model_readme(card, known)
    assert "raysft predict --trust-code . IMAGE..." in readme
    assert "The module `own.nets` is not part of this folder" in readme
    assert "--trust-code" not in model_readme(a_card(), known)


def test_doubts_stand_under_the_metrics():
    text = model_readme(a_card(), known_of(a_job(), doubts=["nothing was learned"]))
    assert (
        "**Doubtful: nothing was learned.**"
        in text.partition("## Metrics")[2].partition("## Data")[0]
    )
    assert "Doubtful" not in model_readme(a_card(), known_of(a_job()))
