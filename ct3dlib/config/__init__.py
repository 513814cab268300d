"""Every setting of the pipeline as frozen specs. Standard library and pydantic only.

`load_config` turns the mapping that Snakemake read from config.yaml and a preset into a `Config`;
each step gets the JSON of its own section and nothing else.
"""

from ct3dlib.config.autoencoder import (
    AutoencoderSpec,
    CausalTokenizerSpec,
    KLAutoencoderSpec,
    LatentAttentionSpec,
    MaisiTokenizerSpec,
)
from ct3dlib.config.base import SPLITS, Fraction, Name, Shape, Spec, Split, Triple
from ct3dlib.config.classifier import (
    ClassifierSpec,
    VolumeClassifierNetworkSpec,
    VolumeClassifierSpec,
)
from ct3dlib.config.data import (
    Axes,
    CatalogSpec,
    Dataset,
    Domain,
    Fault,
    PhantomSpec,
    RecipeSpec,
)
from ct3dlib.config.encoder import (
    VisionTransformerSpec,
    VolumeEncoderNetworkSpec,
    VolumeEncoderSpec,
)
from ct3dlib.config.features import FeaturesSpec, SliceFeaturesSpec
from ct3dlib.config.finetune import (
    FromEncoderSpec,
    HeadSpec,
    LabelTableSpec,
    MaeFinetuneSpec,
    MaeSegmentSpec,
    PredictorNetworkSpec,
    SegmenterNetworkSpec,
    SmallBudgetSpec,
    Task,
)
from ct3dlib.config.generation import GenerationSpec, Plane
from ct3dlib.config.mae import (
    EmbeddingsSpec,
    MaeSpec,
    MaskedAutoencoderNetworkSpec,
    MaskedAutoencoderSpec,
)
from ct3dlib.config.quantizer import FSQSpec, LFQSpec, QuantizerSpec
from ct3dlib.config.regions import (
    ClassicalRegionsSpec,
    LabelMapSpec,
    Medsam2Spec,
    Numbering,
    RegionsSpec,
    TotalSegmentatorSpec,
)
from ct3dlib.config.root import Config, ReportSpec, load_config, load_regions, schema
from ct3dlib.config.tokenizer import (
    DiscriminatorSpec,
    LatentsSpec,
    PerceptualSpec,
    SlidingWindowSpec,
    StageSpec,
    TokenizerLossSpec,
    TokenizerSpec,
    TokensSpec,
)
from ct3dlib.config.training import AugmentSpec, EarlyStopSpec, TrainSpec
from ct3dlib.config.transformer import (
    BlocksSpec,
    MaskGITNetworkSpec,
    MaskGITSpec,
    MaskSchedule,
    SampleOrder,
    SamplesSpec,
    SlabSpec,
    TextSpec,
    TransformerSpec,
)
from ct3dlib.config.vlm import (
    MoreScansSpec,
    SliceEncoderSpec,
    TextEncoderSpec,
    VlmEvaluateSpec,
    VlmModelSpec,
    VlmNetworkSpec,
    VlmSpec,
)

__all__ = [
    "SPLITS",
    "AugmentSpec",
    "AutoencoderSpec",
    "Axes",
    "BlocksSpec",
    "CatalogSpec",
    "CausalTokenizerSpec",
    "ClassicalRegionsSpec",
    "ClassifierSpec",
    "Config",
    "Dataset",
    "DiscriminatorSpec",
    "Domain",
    "EarlyStopSpec",
    "EmbeddingsSpec",
    "FSQSpec",
    "Fault",
    "FeaturesSpec",
    "Fraction",
    "FromEncoderSpec",
    "GenerationSpec",
    "HeadSpec",
    "KLAutoencoderSpec",
    "LFQSpec",
    "LabelMapSpec",
    "LabelTableSpec",
    "LatentAttentionSpec",
    "LatentsSpec",
    "MaeFinetuneSpec",
    "MaeSegmentSpec",
    "MaeSpec",
    "MaisiTokenizerSpec",
    "MaskGITNetworkSpec",
    "MaskGITSpec",
    "MaskSchedule",
    "MaskedAutoencoderNetworkSpec",
    "MaskedAutoencoderSpec",
    "Medsam2Spec",
    "MoreScansSpec",
    "Name",
    "Numbering",
    "PerceptualSpec",
    "PhantomSpec",
    "Plane",
    "PredictorNetworkSpec",
    "QuantizerSpec",
    "RecipeSpec",
    "RegionsSpec",
    "ReportSpec",
    "SampleOrder",
    "SamplesSpec",
    "SegmenterNetworkSpec",
    "Shape",
    "SlabSpec",
    "SliceEncoderSpec",
    "SliceFeaturesSpec",
    "SlidingWindowSpec",
    "SmallBudgetSpec",
    "Spec",
    "Split",
    "StageSpec",
    "Task",
    "TextEncoderSpec",
    "TextSpec",
    "TokenizerLossSpec",
    "TokenizerSpec",
    "TokensSpec",
    "TotalSegmentatorSpec",
    "TrainSpec",
    "TransformerSpec",
    "Triple",
    "VisionTransformerSpec",
    "VlmEvaluateSpec",
    "VlmModelSpec",
    "VlmNetworkSpec",
    "VlmSpec",
    "VolumeClassifierNetworkSpec",
    "VolumeClassifierSpec",
    "VolumeEncoderNetworkSpec",
    "VolumeEncoderSpec",
    "load_config",
    "load_regions",
    "schema",
]
