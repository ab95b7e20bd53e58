"""The schema of the files that a report reads; unknown keys are ignored, a figure that is not finite is refused."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Metrics(_Record):
    """Figures of one model; the unit is in the name, accuracies are fractions."""

    accuracy: Fraction | None = None
    accuracy_low: Fraction | None = None
    accuracy_high: Fraction | None = None
    errors: Count | None = None
    examples: Count | None = None
    nll: float | None = None
    ece: Fraction | None = None
    agreement: Fraction | None = None
    agreement_low: Fraction | None = None
    agreement_high: Fraction | None = None
    kl_to_teacher: float | None = None
    parameters: Count | None = None
    macs: Count | None = None
    weights_left: Count | None = None
    file_bytes: Count | None = None
    latency_ms_p50: Amount | None = None
    latency_ms_p90: Amount | None = None
    latency_ms_p99: Amount | None = None
    latency_n: Count | None = None
    throughput_per_s: Amount | None = None
    throughput_batch: Count | None = None
    peak_memory_bytes: Count | None = None
    energy_j_per_inference: Amount | None = None
    validation_accuracy: Fraction | None = None
    validation_accuracy_last: Fraction | None = None
    validation_loss: float | None = None
    best_epoch: Count | None = None
    epochs: Count | None = None
    train_seconds: Amount | None = None
    parity_max_abs: Amount | None = None
    parity_max_rel: Amount | None = None
    parity_cosine: float | None = None
    parity_agreement: Fraction | None = None
    parity_sqnr_db: float | None = None
    parity_inputs: Count | None = None
    steady: bool | None = None
    test_loss: float | None = None
    test_loss_low: float | None = None
    test_loss_high: float | None = None
    test_perplexity: Amount | None = None
    test_bits_per_byte: float | None = None
    test_accuracy: Fraction | None = None
    predictions: Count | None = None


class Roles(_Record):
    """Which stage plays which part; a stage that was not run is null."""

    teacher: str | None = None
    alone: str | None = None
    student: str | None = None
    shipped: str | None = None
    int8: str | None = None


class Note(_Record):
    """Something a person should know; `loud` for what changes how figures may be read."""

    text: str
    stage: str | None = None
    loud: bool = False


class Stage(_Record):
    """What one stage did."""

    kind: str
    artifact: str | None = None
    reused: bool = False
    seconds: Amount | None = None
    metrics: Metrics = Metrics()


class RunFile(_Record):
    """`run.json`."""

    recipe: str
    out: str = ""
    seconds: Amount | None = None
    created: str = ""
    command: str = ""
    environment: dict[str, Any] = {}
    recipe_yaml: str = ""
    notes: list[Note] = []
    roles: Roles = Roles()
    stages: dict[str, Stage]


class Epoch(_Record):
    """One line of a training's history."""

    epoch: Count
    train_loss: float | None = None
    validation_accuracy: Fraction | None = None
    validation_loss: float | None = None


class HistoryFile(_Record):
    """`stages/NAME/history.json`."""

    epochs: list[Epoch] = []


class PerClass(_Record):
    """How many examples of one class were answered right, of how many."""

    correct: Count
    total: Count


class Bin(_Record):
    """The examples whose confidence lies between `low` and `high`."""

    low: Fraction
    high: Fraction
    confidence: Fraction | None = None
    accuracy: Fraction | None = None
    count: Count


class Faithful(_Record):
    """What fidelity knows of one model beyond its metrics."""

    per_class: list[PerClass] = []
    reliability: list[Bin] = []


class Pair(_Record):
    """McNemar's test of two models on the same examples; `difference` is accuracy a minus accuracy b."""

    a: str
    b: str
    a_only: Count
    b_only: Count
    p: Fraction
    difference: float
    low: float | None = None
    high: float | None = None


class FidelityFile(_Record):
    """`fidelity.json`."""

    split: str = "test"
    examples: Count | None = None
    class_names: list[str | int] = []
    models: dict[str, Faithful] = {}
    pairs: list[Pair] = []


class RowPair(_Record):
    """The mean loss of a minus that of b on the same tokens, in nats; the interval is over rows."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    rows: Count


class RowsFile(_Record):
    """`rows.json`."""

    split: str = "test"
    pairs: list[RowPair] = []


class Sample(_Record):
    """A beginning, what a model wrote after it, and what the text goes on with."""

    prompt: str
    written: str
    text: str


class SamplesFile(_Record):
    """`stages/NAME/samples.json`."""

    samples: list[Sample] = []


class Ratio(_Record):
    """How many times faster b is than a."""

    a: str
    b: str
    quantity: str
    ratio: Annotated[float, Field(gt=0)]
    low: Annotated[float, Field(gt=0)] | None = None
    high: Annotated[float, Field(gt=0)] | None = None
    n: Count | None = None


class Energy(_Record):
    """Which counter the joules come from, or why there are none."""

    source: str | None = None
    reason: str | None = None


class MeasurementFile(_Record):
    """`measurement.json`."""

    machine: dict[str, Any] = {}
    threads: Count | None = None
    models: dict[str, Metrics] = {}
    ratios: list[Ratio] = []
    energy: Energy | None = None
    notes: list[str] = []
    busy: bool = False


class Exit(_Record):
    """What one answer of a network with exits is worth."""

    name: str
    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    macs: Count


class Stop(_Record):
    """What comes of leaving at a confidence: accuracy and mean cost."""

    threshold: Amount
    accuracy: Fraction
    macs: Amount


class ExitsFile(_Record):
    """`stages/NAME/exits.json`."""

    examples: Count
    exits: list[Exit]
    policy: Annotated[list[Stop], Field(min_length=1)]
