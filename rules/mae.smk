# The masked autoencoder: pretraining, and fine-tuning of its encoder on labels.


def recipe_tables(section, *splits):
    """Return the volumes' status tables of some splits of a section's recipe."""
    return status_tables(
        f"data/volumes/{section.recipe}/{{split}}/{{shard}}.parquet", splits
    )


for NAME, SECTION in CONFIG.encoders().items():
    check_start(NAME, SECTION.init_from, makes=NAME)


if CONFIG.mae is not None:

    rule mae:
        input:
            train=recipe_tables(CONFIG.mae, "train"),
            tune=recipe_tables(CONFIG.mae, "tune"),
            start=start_files(CONFIG.mae.init_from),
        output:
            model="models/mae/model.safetensors",
            spec="models/mae/spec.json",
        log:
            "logs/mae.log",
        benchmark:
            "logs/benchmark/mae.tsv"
        threads: cores(CONFIG.mae)
        resources:
            gpu=gpus(CONFIG.mae),
            mem_mb=by_attempt(8000),
            runtime=by_attempt(1440),
        params:
            spec=spec("mae"),
            recipe=CONFIG.recipes[CONFIG.mae.recipe].model_dump_json(),
            code=fingerprint("workflow_scripts.train_mae"),
            launch=launch(CONFIG.mae),
        shell:
            "{PYTHON} {params.launch} workflow_scripts.train_mae --spec {params.spec:q}"
            " --recipe {params.recipe:q} --train {input.train} --tune {input.tune}"
            " --code {params.code} --run runs/mae --model models/mae > {log} 2>&1"

    rule evaluate_mae:
        input:
            model="models/mae/model.safetensors",
            spec="models/mae/spec.json",
            valid=recipe_tables(CONFIG.mae, "valid"),
        output:
            metrics="metrics/mae/reconstruction.json",
            example="results/mae/picture.png",
        log:
            "logs/evaluate_mae.log",
        threads: 1
        resources:
            gpu=gpus(CONFIG.mae) and 1,
            mem_mb=by_attempt(8000),
            runtime=by_attempt(240),
        params:
            code=fingerprint("workflow_scripts.evaluate_mae"),
            device=CONFIG.mae.device,
        shell:
            "{PYTHON} -m workflow_scripts.evaluate_mae --device {params.device} --model models/mae"
            " --valid {input.valid} --example {output.example} --metrics {output.metrics} > {log} 2>&1"


if CONFIG.mae_finetune is not None:
    LABELS_CSV = CONFIG.mae_finetune.labels and CONFIG.mae_finetune.labels.csv

    rule mae_finetune:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            train=recipe_tables(CONFIG.mae_finetune, "train"),
            tune=recipe_tables(CONFIG.mae_finetune, "tune"),
            labels=LABELS_CSV or [],
            start=start_files(CONFIG.mae_finetune.init_from),
        output:
            model="models/mae_finetune/model.safetensors",
            spec="models/mae_finetune/spec.json",
        log:
            "logs/mae_finetune.log",
        benchmark:
            "logs/benchmark/mae_finetune.tsv"
        threads: cores(CONFIG.mae_finetune)
        resources:
            gpu=gpus(CONFIG.mae_finetune),
            mem_mb=by_attempt(8000),
            runtime=by_attempt(1440),
        params:
            spec=spec("mae_finetune"),
            recipe=CONFIG.recipes[CONFIG.mae_finetune.recipe].model_dump_json(),
            code=fingerprint("workflow_scripts.train_finetune"),
            launch=launch(CONFIG.mae_finetune),
        shell:
            "{PYTHON} {params.launch} workflow_scripts.train_finetune --spec {params.spec:q}"
            " --recipe {params.recipe:q} --catalog {input.catalog} --train {input.train} --tune {input.tune}"
            " --code {params.code} --run runs/mae_finetune --model models/mae_finetune > {log} 2>&1"

    rule evaluate_mae_finetune:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            predictions="predictions/valid.csv",
            labels=LABELS_CSV or [],
        output:
            metrics="metrics/mae/finetune.json",
            curves="results/mae/roc.png",
        log:
            "logs/evaluate_mae_finetune.log",
        resources:
            mem_mb=by_attempt(4000),
            runtime=by_attempt(60),
        params:
            spec=spec("mae_finetune"),
            code=fingerprint("workflow_scripts.evaluate_finetune"),
        shell:
            "{PYTHON} -m workflow_scripts.evaluate_finetune --spec {params.spec:q} --catalog {input.catalog}"
            " --predictions {input.predictions} --curves {output.curves} --metrics {output.metrics} > {log} 2>&1"

    rule compare_starts:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            train=recipe_tables(CONFIG.mae_finetune, "train"),
            valid=recipe_tables(CONFIG.mae_finetune, "valid"),
            labels=LABELS_CSV or [],
            start=start_files(CONFIG.mae_finetune.init_from),
        output:
            metrics="metrics/mae/small_budget.json",
        log:
            "logs/compare_starts.log",
        benchmark:
            "logs/benchmark/compare_starts.tsv"
        threads: cores(CONFIG.mae_finetune)
        resources:
            gpu=gpus(CONFIG.mae_finetune) and 1,
            mem_mb=by_attempt(8000),
            runtime=by_attempt(1440),
        params:
            spec=spec("mae_finetune"),
            recipe=CONFIG.recipes[CONFIG.mae_finetune.recipe].model_dump_json(),
            code=fingerprint("workflow_scripts.compare_starts"),
        shell:
            "{PYTHON} -m workflow_scripts.compare_starts --spec {params.spec:q} --recipe {params.recipe:q}"
            " --catalog {input.catalog} --train {input.train} --valid {input.valid}"
            " --code {params.code} --run runs/small_budget --metrics {output.metrics} > {log} 2>&1"


MAE_METRICS = [
    f"metrics/mae/{part}.json"
    for part, wanted in {
        "reconstruction": CONFIG.mae,
        "finetune": CONFIG.mae_finetune,
        "small_budget": CONFIG.mae_finetune and CONFIG.mae_finetune.small_budget,
        "segment": CONFIG.mae_segment,
    }.items()
    if wanted
]

MAE_PICTURES = [
    *(["results/mae/picture.png"] if CONFIG.mae is not None else []),
    *(["results/mae/roc.png"] if CONFIG.mae_finetune is not None else []),
    *(["results/mae/segmentation.png"] if CONFIG.mae_segment is not None else []),
]

if MAE_METRICS:

    rule mae_metrics:
        input:
            MAE_METRICS,
        output:
            "metrics/mae.json",
        log:
            "logs/mae_metrics.log",
        localrule: True
        shell:
            "{PYTHON} -m workflow_scripts.merge_metrics --parts {input} --metrics {output} > {log} 2>&1"
