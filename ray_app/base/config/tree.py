"""The tree of all sections."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.base.config.credentials import keys_with_credentials
from ray_app.base.config.embedding import EmbedConfig, FeatureConfig
from ray_app.base.config.inputs import (
    CaptionConfig,
    EngagementConfig,
    EnrichConfig,
    GraphConfig,
    IngestConfig,
    PinTextConfig,
)
from ray_app.base.config.labelling import LabelConfig, SampleConfig
from ray_app.base.config.measuring import AdjudicationConfig, DemoConfig, EvaluateConfig, SimulateConfig, TransferConfig
from ray_app.base.config.section import PositiveInt, Section
from ray_app.base.config.serving import ServeConfig
from ray_app.base.config.training import DistillConfig, RetrainConfig, TeacherConfig


class RayConfig(Section):
    """Resources of the local cluster that is started when no RAY_ADDRESS is given."""

    num_cpus: PositiveInt | None = None
    """Logical CPUs of a local cluster; None: max(6, the machine's cores). Fewer can hang a chain of Ray Data
    stages, each of which holds some while it waits for the others."""
    object_store_bytes: PositiveInt = 500_000_000


class TablesConfig(Section):
    """Tables keyed by pin are written in buckets by a hash of the pin; one process holds one bucket at a time."""

    num_buckets: Literal["auto"] | Annotated[int, Field(gt=0, le=2**20)] = "auto"
    """A power of two; auto: chosen at ingest, so that no bucket is larger than about `bucket_bytes`."""
    bucket_bytes: PositiveInt = 64_000_000
    """Of the source files, per bucket. A process needs some 20 times as much memory for the columns of texts."""
    rows_per_file: PositiveInt = 100_000
    keep_days: Annotated[int, Field(ge=0)] = 30
    """Days for which pipelines/collect_garbage.py keeps results that no table names, such as labels of an earlier day's sample."""

    @field_validator("num_buckets")
    @classmethod
    def _is_a_power_of_two(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value & (value - 1):
            raise ValueError("must be a power of two, so that a bucket can be split without reading another")
        return value


class PriceConfig(Section):
    """Prices per hour for cost estimates; None: estimates in hours only."""

    gpu_hour: Annotated[float, Field(ge=0)] | None = None
    cpu_hour: Annotated[float, Field(ge=0)] | None = None
    currency: str = "USD"


class Config(Section):
    """One run of the system."""

    output: str
    """Folder or pyarrow.fs URI that everything is written under."""
    seed: int = 17
    ray: RayConfig = RayConfig()
    tables: TablesConfig = TablesConfig()
    demo: DemoConfig | None = None
    """Generate the synthetic demo dataset first; None: the sources exist already."""
    ingest: IngestConfig
    caption: CaptionConfig = CaptionConfig()
    prices: PriceConfig = PriceConfig()
    enrich: EnrichConfig = EnrichConfig()
    engagement: EngagementConfig | None = None
    """None: no stage `engagement`."""
    graph: GraphConfig | None = None
    """None: no stage `graph`."""
    pin_text: PinTextConfig = PinTextConfig()
    features: FeatureConfig
    retrain: RetrainConfig = RetrainConfig()
    train_teacher: TeacherConfig
    sample: SampleConfig = SampleConfig()
    label: LabelConfig = LabelConfig()
    distill: DistillConfig
    embed: EmbedConfig = EmbedConfig()
    serve: ServeConfig = ServeConfig()
    experiments: list[str] = []
    """Experiments that `run_all.py` runs too, with the run's seed alone, for the report; files, seen from the config's folder."""
    evaluate: EvaluateConfig = EvaluateConfig()
    adjudication: AdjudicationConfig = AdjudicationConfig()
    transfer: TransferConfig = TransferConfig()
    simulate: SimulateConfig = SimulateConfig()

    @model_validator(mode="after")
    def _no_credentials(self) -> "Config":
        if found := keys_with_credentials(self.model_dump(mode="json")):
            key, part = found[0]
            raise ValueError(
                f"{key}: credentials ({part}) do not belong in a URL, which is stored in manifests and shown in reports; use "
                "the environment, and change a password that was written down"
            )
        return self

    @model_validator(mode="after")
    def _splits_leave_training_queries(self) -> "Config":
        if self.train_teacher.test_fraction + self.train_teacher.validation_fraction >= 1.0:
            raise ValueError(
                "train_teacher.test_fraction + train_teacher.validation_fraction must be below 1, or no query is left for training"
            )
        if self.embed.truncate_dim not in {None, self.distill.dim, *self.distill.matryoshka_dims}:
            raise ValueError(
                f"embed.truncate_dim must be distill.dim or one of distill.matryoshka_dims, not {self.embed.truncate_dim}: "
                "vectors that were not trained to be cut lose much"
            )
        return self
