"""Where a model's weights are on this machine, and how they get there."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from configs.errors import ConfigError, SourceError
from configs.model import ModelSpec

#: A folder with weights in a sub-folder KEY a model; looked into before the hub's cache.
WEIGHTS_VARIABLE = "NATIX_FLEET_WEIGHTS"


def find(spec: ModelSpec) -> Path:
    """Where the weights of a model are: a folder as ``from_pretrained`` reads it, or the file that its row names.

    The project's own lie beside their model.toml; others under NATIX_FLEET_WEIGHTS/KEY, or in the hub's cache. Nothing
    is fetched: a worker that starts must not depend on a network.

    Raises:
        ConfigError: they are not here; says what to do.
    """
    own = spec.folder if (spec.folder / "model.toml").is_file() else None
    root = os.environ.get(WEIGHTS_VARIABLE)
    put = Path(root) / spec.key if root and (Path(root) / spec.key).exists() else None
    folder = own or put or _cached(spec)
    if folder is None:
        raise ConfigError(f"model {spec.key!r}: its weights are not on this machine: {_remedy(spec)}")
    path = folder / spec.file if spec.file else folder
    if not path.exists():
        raise ConfigError(f"model {spec.key!r}: there is no {path}: {_remedy(spec)}")
    return path


def fetch(spec: ModelSpec) -> Path:
    """Downloads a model's weights from the hub into its cache.

    Raises:
        ConfigError: they are not on the hub, or their licence was not accepted.
        SourceError: the hub is away.
    """
    if "/" not in spec.id or ":" in spec.id:
        raise ConfigError(f"model {spec.key!r}: its weights are not on the hub: {_remedy(spec)}")
    try:
        folder = snapshot_download(
            spec.id, revision=spec.revision or None, allow_patterns=[spec.file] if spec.file else None
        )
    except GatedRepoError:
        raise ConfigError(
            f"model {spec.key!r}: {spec.id} is gated: accept its licence on the hub, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"model {spec.key!r}: the hub has no {spec.id}, or HF_TOKEN may not see it") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"model {spec.key!r}: {spec.id} cannot be fetched: {reason}") from None
    return Path(folder)


def _cached(spec: ModelSpec) -> Path | None:
    if "/" not in spec.id or ":" in spec.id:
        return None
    try:
        return Path(snapshot_download(spec.id, revision=spec.revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def _remedy(spec: ModelSpec) -> str:
    put = f"put them into a folder {spec.key} under ${WEIGHTS_VARIABLE}"
    if "/" not in spec.id or ":" in spec.id:
        return f"{put} ({spec.id or 'published nowhere'})"
    gate = ", after accepting its licence on the hub and setting HF_TOKEN" if spec.gated else ""
    return f"natix-fleet models fetch {spec.key} (from {spec.id}{gate}), or {put}"
