"""A model: what it is, where its weights are, how its output becomes a probability, and what is known of it.

The project's own models lie in configs/models/KEY/, each with model.toml beside its weights, calibrator, training list
and card. All others are rows of configs/models.toml, the catalogue.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from configs.errors import ConfigError
from configs.serving import Serving

MODELS = Path(__file__).parent / "models"
CATALOGUE = Path(__file__).parent / "models.toml"
#: Engines whose models are served by a process of their own, on a share of the device.
SERVED = ("vllm",)

T = TypeVar("T")

Key = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,47}$")]

#: What is known of a model. No more is ever said of it than its state does:
#: works: a real checkpoint was loaded and scored a photo; shape: the real class ran, at random weights;
#: replaced: it does not exist or cannot be had, ``replaced_by`` stands in; abstains: it runs and has no vote of its
#: own; gated: its weights want an accepted licence, and nothing of it ran; unavailable: nothing of it ran here.
State = Literal["works", "shape", "replaced", "abstains", "gated", "unavailable"]

#: What a worker may hold a model in; "auto" is the model's own.
Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8", "int8", "int4"]


class Calibrator(Struct, frozen=True, forbid_unknown_fields=True):
    """Platt scaling: P = sigmoid(slope * score + intercept), score being the engine's raw logit.

    Source: J. Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """

    slope: float = 1.0
    intercept: float = 0.0
    #: Photos that it was fitted on, in words; empty: it was not fitted.
    fitted_on: str = ""


class WeightBytes(Struct, frozen=True, forbid_unknown_fields=True):
    """What the weights take on a device, by precision; 0: not known, or there is no such checkpoint."""

    bf16: Annotated[int, Meta(ge=0)] = 0
    fp8: Annotated[int, Meta(ge=0)] = 0
    int4: Annotated[int, Meta(ge=0)] = 0


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model."""

    key: Key
    #: Stands in every vote, as KEY@VERSION.
    version: str = "1"
    #: 0 foundation, 1 detection, 2 multi-modal, 3 fast VLM, 4 power VLM, 5 precision VLM, 6 consensus.
    level: Annotated[int, Meta(ge=0, le=6)] = 0
    #: The name that was asked for; empty for a replacement and for the project's own.
    requested: str = ""
    state: State
    #: Why it is in this state, or what limits it.
    reason: str
    #: The date, and the command that shows the state.
    seen: str = ""
    #: Key of the row that stands in for this one.
    replaced_by: str = ""

    #: Repository on the Hugging Face hub, or where else the weights are published.
    id: str = ""
    #: The same weights in fewer bits, each a repository of its own; none for a precision: there is none, or the engine
    #: makes it of ``id`` when it loads.
    quantised: dict[Precision, str] = {}
    #: Commit or tag of the repository.
    revision: str = ""
    #: Weights: beside model.toml, or within the repository.
    file: str = ""
    licence: str = ""
    #: A licence must be accepted, or access asked for, before the weights can be had.
    gated: bool = False
    #: The licence forbids commercial use.
    non_commercial: bool = False
    params: Annotated[int, Meta(ge=0)] = 0
    weight_bytes: WeightBytes = WeightBytes()
    #: Beside its weights, for each photo of a batch: the most that torch held, on an H100 in the row's precision at
    #: batches of 8 (docs/models.md); 0: not measured.
    photo_bytes: Annotated[int, Meta(ge=0)] = 0
    #: What a worker holds it in unless its profile says otherwise.
    precision: Precision = "bf16"

    #: Name in workers.engines.ENGINES; empty: none runs it.
    engine: str = ""
    #: The class that the engine loads, in full.
    library: str = ""
    #: ``pip install -e '.[EXTRA]'`` brings the library; empty: the default installation has it.
    extra: str = ""
    #: Where no extra can bring it: what to type.
    install: str = ""
    #: The library cannot live beside the others: the engine runs in the interpreter that
    #: NATIX_FLEET_PYTHON_<ENVIRONMENT> names (workers.engines.apart).
    environment: str = ""
    #: Side of the square, or longest side, of the engine's input.
    input_px: Annotated[int, Meta(ge=1)] = 224
    #: The model's own class names that mean roadwork, each with its weight in the noisy-or, above 0 to 1.
    classes: dict[str, Annotated[float, Meta(gt=0, le=1)]] = {}
    #: What an open-vocabulary model is asked for, likewise.
    prompts: dict[str, Annotated[float, Meta(gt=0, le=1)]] = {}
    #: Boxes of a lower score do not count.
    least_score: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    #: Of a model that vLLM serves.
    serving: Serving | None = None
    #: What only this engine knows.
    options: dict[str, str | int | float | bool | list[str]] = {}
    #: In words: how its output becomes a score, and when it abstains.
    score: str = ""
    abstains: str = ""
    #: Proposed for its vote; 0 until a calibrator was fitted, since a raw score is no probability. The profile decides.
    weight: Annotated[float, Meta(ge=0)] = 0.0
    calibrator: Calibrator = Calibrator()
    #: File beside model.toml with one sha256 (hex) a line: the photos that the model was trained on.
    training_list: str = ""

    @property
    def name(self) -> str:
        """As it stands in votes."""
        return f"{self.key}@{self.version}"

    @property
    def repository(self) -> str:
        """Where the weights of its precision are published."""
        return self.quantised.get(self.precision, self.id)

    @property
    def folder(self) -> Path:
        """Where the project's own model lies; for others there is no such folder."""
        return MODELS / self.key

    @property
    def path(self) -> Path:
        """Where the weights of the project's own model are."""
        return self.folder / self.file

    def training_photos(self) -> frozenset[bytes]:
        """The sha256 digests (32 bytes each) of the photos that the model was trained on.

        Raises:
            ConfigError: the list is missing or damaged.
        """
        if not self.training_list:
            return frozenset()
        path = self.folder / self.training_list
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
def catalogue() -> dict[str, ModelSpec]:
    """Every model by key: the rows of models.toml in their order, then the project's own.

    Raises:
        ConfigError: a file is not TOML, a key is unknown or stands twice, or a row names a replacement that is none.
    """
    rows = list(_read(CATALOGUE, _Rows).models)
    rows += [_read(path, ModelSpec) for path in sorted(MODELS.glob("*/model.toml"))]
    found: dict[str, ModelSpec] = {}
    for row in rows:
        if row.key in found:
            raise ConfigError(f"{CATALOGUE}: two models have the key {row.key!r}")
        found[row.key] = row
    for row in rows:
        if (row.state == "replaced") != bool(row.replaced_by) or (row.replaced_by and row.replaced_by not in found):
            raise ConfigError(f"{CATALOGUE}: model {row.key!r} is {row.state}, replaced_by is {row.replaced_by!r}")
    return found


@cache
def load_model(key: str) -> ModelSpec:
    """The model of a key, one that an engine runs.

    Raises:
        ConfigError: there is none, nothing runs it, or the catalogue is damaged.
    """
    if (MODELS / key / "model.toml").is_file():
        return _read(MODELS / key / "model.toml", ModelSpec)
    spec = catalogue().get(key)
    if spec is None:
        raise ConfigError(
            f"model {key!r}: neither configs/models.toml nor configs/models/ has it; natix-fleet models lists all"
        )
    if spec.replaced_by:
        raise ConfigError(f"model {key!r} is replaced by {spec.replaced_by!r}: {spec.reason}")
    if not spec.engine:
        raise ConfigError(f"model {key!r}: no engine runs it: {spec.reason}")
    if spec.engine in SERVED and spec.serving is None:
        raise ConfigError(
            f"model {key!r}: its engine is {spec.engine}, and nothing says how it is served: add [serving]"
        )
    return spec


class _Rows(Struct, frozen=True, forbid_unknown_fields=True):
    models: tuple[ModelSpec, ...]


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
