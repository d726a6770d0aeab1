"""The complete configuration as one typed tree: YAML -> pydantic, unknown keys are errors.

A config may contain `extends: other.yaml` (relative to itself); `--set a.b=c` overrides a leaf, its value read as YAML;
`{output}` in a text is replaced by the output folder.
The resolved tree is stored in every manifest.
"""

from ray_app.base.config.embedding import EmbedConfig, FeatureConfig
from ray_app.base.config.inputs import (
    CaptionConfig,
    ChorusSource,
    EngagementConfig,
    EnrichConfig,
    GraphConfig,
    ImageLimits,
    IngestConfig,
    IngestLimits,
    PinTextConfig,
    Source,
    TableSource,
    UbiSource,
)
from ray_app.base.config.labelling import LabelConfig, SampleConfig
from ray_app.base.config.loading import explain, load_config, read_tree, section_hash, with_overrides
from ray_app.base.config.measuring import (
    AdjudicationConfig,
    ClickbaitConfig,
    DemoConfig,
    EvaluateConfig,
    SimulateConfig,
    TransferConfig,
)
from ray_app.base.config.section import TEXT_FIELDS, Fraction, PositiveInt, Section, TextField
from ray_app.base.config.serving import BlendConfig, CacheConfig, ServeConfig, ServeLimits
from ray_app.base.config.training import (
    DistillConfig,
    PretrainConfig,
    RetrainConfig,
    TeacherConfig,
    TrainConfig,
    WorkersConfig,
)
from ray_app.base.config.tree import Config, PriceConfig, RayConfig
