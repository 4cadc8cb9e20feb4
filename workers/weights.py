"""Where a model's weights are on this machine, and how they get there."""

import errno
import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from configs.errors import ConfigError, DiskError, FleetError, ServerError
from configs.model import ModelSpec

#: A folder with weights in a sub-folder KEY a model; looked into before the hub's cache.
WEIGHTS_VARIABLE = "NATIX_FLEET_WEIGHTS"

#: What an operating system says where a file cannot be written.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
    """Downloads a model's weights from the hub into its cache; what is there already stays.

    Returns:
        The folder, named after the commit that came.

    Raises:
        ConfigError: they are not on the hub, or their licence was not accepted.
        ServerError: the hub is away, or may not be asked.
        DiskError: they cannot be written here.
    """
    if not _on_hub(spec):
        raise ConfigError(f"model {spec.key!r}: its weights are not on the hub: {_remedy(spec)}")
    try:
        folder = _snapshot(spec, local_files_only=False)
    except GatedRepoError:
        raise ConfigError(
            f"model {spec.key!r}: {spec.repository} is gated: accept its licence on the hub, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"model {spec.key!r}: the hub has no {spec.repository}, or HF_TOKEN may not see it") from None
    except RevisionNotFoundError:
        raise ConfigError(
            f"model {spec.key!r}: {spec.repository} has no revision {spec.revision!r}: mend its row"
        ) from None
    except Exception as error:  # noqa: BLE001 - the hub's client raises what its HTTP library does, and that changes
        raise _failed(spec, error) from None
    if not (folder / spec.file).exists():
        raise ConfigError(f"model {spec.key!r}: {spec.repository} has no file {spec.file!r}: mend its row")
    return folder


def _failed(spec: ModelSpec, error: Exception) -> FleetError:
    """What a fetch that failed says: where it asked, what came, and what to do."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return DiskError(
            f"model {spec.key!r}: its weights cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}; "
            "make room there, or set HF_HOME to another folder"
        )
    cause = next(iter(str(error).splitlines()), "").removeprefix("Got: ") or type(error).__name__
    remedy = "check the network and HF_ENDPOINT"
    if constants.HF_HUB_OFFLINE:
        cause, remedy = "HF_HUB_OFFLINE is set, so the hub may not be asked", "unset it"
    gate = "; its licence must be accepted on the hub, then HF_TOKEN set" if spec.gated else ""
    line = f"{spec.repository} cannot be fetched from {constants.ENDPOINT}: {cause}; {remedy}, or {_put(spec)}{gate}"
    # An endpoint may hold a login.
    return ServerError(f"model {spec.key!r}: " + re.sub(r"//[^/@\s]*@", "//", line))


def _snapshot(spec: ModelSpec, *, local_files_only: bool) -> Path:
    return Path(
        snapshot_download(
            spec.repository,
            revision=spec.revision or None,
            # Where one file was fetched, the others are not missing.
            allow_patterns=[spec.file] if spec.file else None,
            local_files_only=local_files_only,
        )
    )


def _cached(spec: ModelSpec) -> Path | None:
    """Their folder in the hub's cache, whole; None: they are not there, or not all of them."""
    if not _on_hub(spec):
        return None
    try:
        return _snapshot(spec, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None


def _on_hub(spec: ModelSpec) -> bool:
    """Whether the weights are published there: OWNER/NAME, and no address of another place."""
    return "/" in spec.repository and ":" not in spec.repository


def _put(spec: ModelSpec) -> str:
    return f"put them into a folder {spec.key} under ${WEIGHTS_VARIABLE}"


def _remedy(spec: ModelSpec) -> str:
    put = _put(spec)
    if not _on_hub(spec):
        return f"{put} ({spec.repository or 'published nowhere'})"
    gate = ", after accepting its licence on the hub and setting HF_TOKEN" if spec.gated else ""
    return f"natix-fleet models fetch {spec.key} (from {spec.repository}{gate}), or {put}"
