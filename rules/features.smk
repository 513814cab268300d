def feature_tables(kind, split):
    """Return the status tables of the volumes or regions that the slice features learn from."""
    return status_tables(
        f"data/{kind}/{CONFIG.features.recipe}/{{split}}/{{shard}}.parquet", [split]
    )


if CONFIG.features is not None:

    rule features:
        input:
            train=feature_tables("volumes", "train"),
            tune=feature_tables("volumes", "tune"),
            train_regions=feature_tables("regions", "train"),
            tune_regions=feature_tables("regions", "tune"),
        output:
            model="models/features/model.safetensors",
            spec="models/features/spec.json",
        log:
            "logs/features.log",
        benchmark:
            "logs/benchmark/features.tsv"
        threads: cores(CONFIG.features)
        resources:
            gpu=gpus(CONFIG.features),
            mem_mb=by_attempt(4000),
            runtime=by_attempt(480),
        params:
            spec=spec("features"),
            recipe=CONFIG.recipes[CONFIG.features.recipe].model_dump_json(),
            code=fingerprint("workflow_scripts.train_features"),
            launch=launch(CONFIG.features),
        shell:
            "{PYTHON} {params.launch} workflow_scripts.train_features --spec {params.spec:q}"
            " --recipe {params.recipe:q} --train {input.train} --tune {input.tune}"
            " --train_regions {input.train_regions} --tune_regions {input.tune_regions}"
            " --code {params.code} --run runs/features --model models/features > {log} 2>&1"
