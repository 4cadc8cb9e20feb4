"""A model specification: configs/models/KEY/model.toml beside its weights, calibrator, training list and card."""

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from configs.errors import ConfigError

MODELS = Path(__file__).parent / "models"


class Calibrator(Struct, frozen=True, forbid_unknown_fields=True):
    """Platt scaling: P = sigmoid(slope * score + intercept), score being the engine's raw logit.

    Source: J. Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """

    slope: float = 1.0
    intercept: float = 0.0
    #: Photos that it was fitted on, in words.
    fitted_on: str = ""


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model: which engine runs which file, how its score becomes a probability, what it was trained on."""

    key: str
    version: str
    engine: str
    #: Weights, beside model.toml.
    file: str
    #: Side of the square the engine's input is resized to.
    input_px: Annotated[int, Meta(ge=1)]
    licence: str
    calibrator: Calibrator = Calibrator()
    #: File beside model.toml with one sha256 (hex) a line: the photos that the model was trained on.
    training_list: str = ""

    @property
    def path(self) -> Path:
        """Where the weights are."""
        return MODELS / self.key / self.file

    def training_photos(self) -> frozenset[bytes]:
        """The sha256 digests (32 bytes each) of the photos that the model was trained on.

        Raises:
            ConfigError: the list is missing or damaged.
        """
        if not self.training_list:
            return frozenset()
        path = MODELS / self.key / self.training_list
        try:
            lines = path.read_text(encoding="ascii").split()
            digests = frozenset(bytes.fromhex(line) for line in lines)
        except OSError as error:
            raise ConfigError(f"training list of model {self.key!r}: {error.strerror} ({path})") from None
        except ValueError:
            digests = frozenset([b""])
        if {len(digest) for digest in digests} - {32}:
            raise ConfigError(f"training list of model {self.key!r}: a line is no sha256 of 64 hex digits ({path})")
        return digests


@cache
def load_model(key: str) -> ModelSpec:
    """Loads configs/models/KEY/model.toml.

    Raises:
        ConfigError: there is none, it is not TOML, or a key is unknown.
    """
    path = MODELS / key / "model.toml"
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ModelSpec)
    except OSError as error:
        known = ", ".join(sorted(p.parent.name for p in MODELS.glob("*/model.toml")))
        raise ConfigError(f"model {key!r}: {error.strerror} ({path}); the project has {known or 'none yet'}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
