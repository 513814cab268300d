"""From raw CT scans to tokens, a trained transformer and a report; the plan is docs/architecture.md."""

from snakemake.utils import min_version

min_version("9.0")


configfile: f"{workflow.basedir}/config.yaml"


include: "rules/common.smk"
include: "rules/catalog.smk"
include: "rules/volumes.smk"
include: "rules/statistics.smk"
include: "rules/regions.smk"
include: "rules/lesions.smk"
include: "rules/features.smk"
include: "rules/tokenizer.smk"
include: "rules/tokens.smk"
include: "rules/latents.smk"
include: "rules/transformer.smk"
include: "rules/classifier.smk"
include: "rules/mae.smk"
include: "rules/mae_segment.smk"
include: "rules/mae_use.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        "results/report.html",
        expand("tokens/{split}.done", split=SPLITS),
        expand("data/volumes/{recipe}/statistics.json", recipe=RECIPES),
        [
            sheet
            for recipe in RECIPES
            for sheet in status_tables(
                f"results/qc/{recipe}/{{split}}/{{shard}}.png", SPLITS
            )
        ],
        REGION_TABLES,
        MAE_OUTCOMES,
    localrule: True


rule data:
    input:
        # Here and not in `all` alone: DVC keeps data/volumes as the outcome of this target.
        expand("data/volumes/{recipe}/statistics.json", recipe=RECIPES),
        status_tables(
            f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", SPLITS
        ),
        REGION_TABLES,
    localrule: True


rule masks:
    input:
        REGION_TABLES,
    localrule: True


rule tokenizers:
    input:
        "metrics/reconstruction.json",
    localrule: True


rule train:
    input:
        [f"models/{name}/spec.json" for name in (*CONFIG.tokenizers, "transformer")],
        "models/classifier/spec.json" if CONFIG.classifier is not None else [],
        [f"models/{name}/spec.json" for name in CONFIG.encoders()],
    localrule: True


rule representations:
    input:
        MAE_OUTCOMES,
    localrule: True


rule validate:
    input:
        # A training validates itself, on the tune split; the best value is in its spec.json.
        rules.train.input,
        "metrics/transformer.json",
    localrule: True


rule test:
    input:
        "metrics/reconstruction.json",
        "metrics/transformer.json",
        "metrics/generation.json",
        "metrics/mae.json" if MAE_METRICS else [],
    localrule: True
