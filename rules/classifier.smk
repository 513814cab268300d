if CONFIG.classifier is not None:

    rule classifier:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            train=status_tables(
                f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", ["train"]
            ),
            tune=status_tables(
                f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", ["tune"]
            ),
        output:
            model="models/classifier/model.safetensors",
            spec="models/classifier/spec.json",
        log:
            "logs/classifier.log",
        benchmark:
            "logs/benchmark/classifier.tsv"
        threads: cores(CONFIG.classifier)
        resources:
            gpu=gpus(CONFIG.classifier),
            mem_mb=by_attempt(8000),
            runtime=by_attempt(480),
        params:
            spec=spec("classifier"),
            recipe=CONFIG.recipes[TOKEN_RECIPE].model_dump_json(),
            code=fingerprint("workflow_scripts.train_classifier"),
            launch=launch(CONFIG.classifier),
        shell:
            "{PYTHON} {params.launch} workflow_scripts.train_classifier --spec {params.spec:q}"
            " --recipe {params.recipe:q} --catalog {input.catalog} --train {input.train} --tune {input.tune}"
            " --code {params.code} --run runs/classifier --model models/classifier > {log} 2>&1"
