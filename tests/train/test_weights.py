"""Weights over the network: fetched once a node, verified, refused and removed when they are
wrong.
"""

import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raysft.errors import ModelError
from raysft.job.spec import Model
from raysft.storage import write_json
from raysft.train.modeling import build_network, load_weights
from raysft.train.unwrap import Found
from raysft.train.weights import ExpectedImages, fetch_weights_file
from tests.tiny import tiny

REPOSITORY = Path(__file__).parents[2]


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, counts requests, and can promise more than it sends."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sent, self.requests = content, len(content), 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/w.safetensors"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path):
    save_file(tiny(3).state_dict(), tmp_path / "w.safetensors")
    server = Server((tmp_path / "w.safetensors").read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch/hub/checkpoints"


def build(weights: str):
    return build_network(Model(name="tests.tiny:tiny", weights=weights), 3, 0)


@pytest.mark.slow
def test_workers_of_one_node_download_weights_once(served):
    code = (
        "import sys; from raysft.job.spec import Model; from raysft.train.modeling import "
        "build_network; "
        "print(build_network(Model(name='tests.tiny:tiny', weights=sys.argv[1]), 3, "
        "0).loaded.loaded)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, served.url],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    assert [worker.communicate(timeout=120)[0].strip() for worker in workers] == ["4"] * 2
    assert served.requests == 1


def test_incomplete_download_is_refused_and_leaves_nothing(served, cache):
    served.sent -= 10
    with pytest.raises(ModelError, match=r"the connection ended after [\d,]+ of [\d,]+ bytes"):
        build(served.url)
    assert list(cache.iterdir()) == []
    served.sent += 10
    assert build(served.url).loaded is not None


def test_a_hash_in_the_address_is_checked(served, cache):
    right = hashlib.sha256(served.content).hexdigest()
    assert build(f"{served.url}#sha256={right}").loaded is not None
    with pytest.raises(ModelError, match="its SHA-256 does not begin with 0000"):
        build(f"{served.url}#sha256={'0' * 64}")
    assert len(list(cache.iterdir())) == 1


def test_download_without_weights_is_refused_and_removed(served, cache):
    served.content = b"<html>not found</html>"
    served.sent = len(served.content)
    with pytest.raises(ModelError, match="cannot be read"):
        build(served.url)
    assert list(cache.iterdir()) == []


def test_unreachable_server_says_where_to_put_file(cache):
    with pytest.raises(ModelError, match="cannot be downloaded") as caught:
        build("http://127.0.0.1:9/w.safetensors")
    assert f"put it at {cache}/raysft-" in caught.value.todo


def test_a_date_in_a_name_is_no_hash(served):
    assert build(served.url.replace("w.safetensors", "w-20240131.safetensors")).loaded is not None


def test_two_addresses_are_two_files(served):
    first = fetch_weights_file(Model(name="x:y", weights=served.url))
    second = fetch_weights_file(Model(name="x:y", weights=served.url.replace("/w.", "/other/w.")))
    assert first != second
    assert served.requests == 2


def test_weights_say_how_they_want_their_images(tmp_path):
    from torchvision.models import resnet18

    save_file(resnet18(weights=None).state_dict(), tmp_path / "w.safetensors")
    network = build_network(Model(name="resnet18", weights=str(tmp_path / "w.safetensors")), 3, 0)
    assert network.images == ExpectedImages(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"
    )
    assert build_network(Model(name="resnet18", weights="none"), 3, 0).images is None


def test_a_model_of_raysft_says_so_itself(tmp_path):
    save_file(tiny(3).state_dict(), tmp_path / "model.safetensors")
    write_json(
        tmp_path / "model.json", {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    )
    assert build(str(tmp_path / "model.safetensors")).images == ExpectedImages(
        (0.1,) * 3, (0.2,) * 3, "bicubic"
    )


def test_damaged_card_beside_weights_is_refused(tmp_path):
    save_file(tiny(3).state_dict(), tmp_path / "model.safetensors")
    write_json(
        tmp_path / "model.json", {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    )
    card = tmp_path / "model.json"
    card.write_text(card.read_text().replace("0.1", "0.7", 1))
    with pytest.raises(
        ModelError, match=r"model\.json beside it cannot be read \(its checksum does not match"
    ):
        build(str(tmp_path / "model.safetensors"))


def test_report_lists_loaded_new_and_unfit_tensors(tmp_path):
    save_file(tiny(5).state_dict(), tmp_path / "w.safetensors")  # with a head of other classes
    loaded = build(str(tmp_path / "w.safetensors")).loaded
    assert loaded is not None
    assert (loaded.loaded, loaded.new, loaded.unfit) == (
        2,
        ("4.weight", "4.bias"),
        ("4.bias", "4.weight"),
    )


def test_new_head_of_pretrained_body_begins_small(tmp_path):
    save_file(tiny(5).state_dict(), tmp_path / "w.safetensors")
    head = build(str(tmp_path / "w.safetensors")).net[4]
    assert 0 < head.weight.abs().max() < 0.05
    assert (head.bias == 0).all()
    save_file(tiny(3).state_dict(), tmp_path / "same.safetensors")  # a head that fits is kept
    assert build(str(tmp_path / "same.safetensors")).net[4].weight.abs().max() > 0.05


def test_only_unknown_auxiliary_heads_are_left_out(tmp_path):
    net = nn.ModuleDict({"aux_proj": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    state = {key: torch.ones_like(value) for key, value in net.state_dict().items()}
    loaded = load_weights(net, Found({**state, "aux1.fc.weight": torch.ones(1)}), "head", Model())
    assert (loaded.loaded, loaded.unfit) == (4, ("aux1.fc.weight",))
    assert (net["aux_proj"].weight == 1).all()


@pytest.mark.slow
def test_vision_transformer_resizes_positions_to_image_size(tmp_path):
    from torchvision.models import vit_b_16

    save_file(vit_b_16(weights=None).state_dict(), tmp_path / "w.safetensors")
    spec = Model(name="vit_b_16", weights=str(tmp_path / "w.safetensors"), image_size=96)
    assert build_network(spec, 3, 0).net(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


# --- timm --------------------------------------------------------------------------------------


def test_timm_network_loads_file_and_tells_preprocessing(tmp_path):
    import timm

    source = timm.create_model("test_efficientnet", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = build_network(
        Model(name="timm:test_efficientnet", weights=str(tmp_path / "w.safetensors")), 3, 0
    )
    assert network.head == "classifier"
    assert network.net(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert torch.equal(network.net.conv_stem.weight, source.conv_stem.weight)
    assert network.images == ExpectedImages((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


def test_transformer_is_built_for_its_image_size():
    network = build_network(Model(name="timm:test_vit", weights="none", image_size=96), 3, 0)
    assert network.net(torch.zeros(2, 3, 96, 96)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("timm:resnet81", "none", "is not a network of timm"),
        ("timm:test_efficientnet", "IMAGENET1K_V1", "has none of that name"),
        ("timm:test_efficientnet", "DEFAULT", "cannot be downloaded"),
        ("timm:deit_tiny_distilled_patch16_224", "none", "has 2 heads"),
    ],
)
def test_what_timm_does_not_have_is_told(monkeypatch, tmp_path, name, weights, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=expected):
        build_network(Model(name=name, weights=weights), 3, 0)
