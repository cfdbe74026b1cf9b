import hashlib

import pytest
import torch

from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.constraint import constraint_error
from offset_equivariant.nn.families import Conventional, OffsetEquivariant
from offset_equivariant.training.weights import (
    DIGESTS,
    WeightsError,
    add_digest,
    load_weights,
    read_digests,
    save_weights,
)


def equivariant(constraint: str, seed: int) -> CifarResNet:
    torch.manual_seed(seed)
    network = CifarResNet(8, 10, OffsetEquivariant(constraint=constraint))
    with torch.no_grad():
        for parameter in network.parameters():  # the free weights then violate Eq. 16, as they do in training
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer in network.buffers():
            buffer.add_(1)
    return network


@pytest.mark.parametrize("into", ["projection", "parametrization"])
def test_parametrised_weights_are_saved_plain_and_load_into_either_kind(tmp_path, into):
    network, images = equivariant("parametrization", 0).eval(), torch.randn(2, 3, 16, 16)
    free = network.conv1.parametrizations["weight"].original.clone()
    path = tmp_path / "weights.safetensors"
    facts = {"seed": 0, "config": {"lr": [0.1, None]}}
    assert save_weights(network, path, facts) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(network.conv1.parametrizations["weight"].original, free)  # saving changes nothing

    other = equivariant(into, 1).eval()
    assert load_weights(other, path) == (facts, hashlib.sha256(path.read_bytes()).hexdigest())
    assert {name for name, _ in other.named_buffers()} == {name for name, _ in network.named_buffers()}
    assert constraint_error(other.conv1.weight, 3) < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(other(images), network(images), rtol=1e-5, atol=1e-5)
    for name, buffer in network.named_buffers():
        assert torch.equal(dict(other.named_buffers())[name], buffer), name


def test_conventional_round_trip_is_exact_and_equal_weights_give_equal_bytes(tmp_path):
    torch.manual_seed(0)
    network, other = CifarResNet(8, 10, Conventional()), CifarResNet(8, 10, Conventional())
    network = network.to(memory_format=torch.channels_last)
    first = save_weights(network, tmp_path / "a.safetensors", {"b": 1, "a": 2})
    load_weights(other, tmp_path / "a.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert save_weights(other, tmp_path / "b.safetensors", {"a": 2, "b": 1}) == first


def test_listed_digests_are_checked(tmp_path):
    network = CifarResNet(8, 10, Conventional())
    paths = [tmp_path / f"{name}.safetensors" for name in "ba"]
    for path in paths:
        save_weights(network, path, {})
        add_digest(path)
    digest = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    # What sha256sum --check reads: digest, two spaces, name.
    assert (tmp_path / DIGESTS).read_text() == f"{digest}  a.safetensors\n{digest}  b.safetensors\n"
    load_weights(network, paths[0])

    content = bytearray(paths[0].read_bytes())
    content[-1] ^= 1
    paths[0].write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.safetensors is damaged.*SHA256SUMS; restore"):
        load_weights(network, paths[0])
    add_digest(paths[0])
    assert read_digests(tmp_path)["b.safetensors"] == hashlib.sha256(content).hexdigest()
    assert read_digests(tmp_path)["a.safetensors"] == digest
    load_weights(network, paths[0])


def test_lists_of_digests_as_sha256sum_writes_them(tmp_path):
    digests = ["0" * 64, "f" * 64]
    (tmp_path / DIGESTS).write_text(f"{digests[0]}  a b.safetensors\n\n{digests[1]} *c.safetensors\n")
    assert read_digests(tmp_path) == {"a b.safetensors": digests[0], "c.safetensors": digests[1]}
    for line in ("0123  short.safetensors", digests[0], f"{digests[0]}x  long.safetensors"):
        (tmp_path / DIGESTS).write_text(f"{digests[0]}  a.safetensors\n{line}\n")
        with pytest.raises(WeightsError, match=r"line 2 of .*SHA256SUMS is not a SHA-256 and a file's name"):
            read_digests(tmp_path)


def test_absent_weights_and_those_of_another_network(tmp_path):
    network = CifarResNet(8, 10, Conventional())
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent"):
        load_weights(network, tmp_path / "absent.safetensors")
    save_weights(network, tmp_path / "w.safetensors", {})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(CifarResNet(8, 10, OffsetEquivariant()), tmp_path / "w.safetensors")


def test_a_file_that_the_list_of_digests_lacks_is_refused(tmp_path):
    network = torch.nn.Linear(2, 2)
    for name in ("listed", "other"):
        save_weights(network, tmp_path / f"{name}.safetensors", {})
    load_weights(network, tmp_path / "other.safetensors")
    add_digest(tmp_path / "listed.safetensors")
    load_weights(network, tmp_path / "listed.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is not in .*SHA256SUMS"):
        load_weights(network, tmp_path / "other.safetensors")


def test_what_is_no_file_of_weights_is_said_before_anything_is_loaded(tmp_path):
    network = torch.nn.Linear(1, 1)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="is not a file of weights"):
        load_weights(network, tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match="is no file; give a file of weights, such as"):
        load_weights(network, tmp_path)
