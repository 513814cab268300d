rule report:
    input:
        catalog=f"data/catalog/{DATASET}.parquet",
        volumes=status_tables(
            f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", SPLITS
        ),
        statistics=expand("data/volumes/{recipe}/statistics.json", recipe=RECIPES),
        regions=REGION_TABLES,
        models=[
            f"models/{name}/{file}"
            for name in (*CONFIG.tokenizers, "transformer")
            for file in ("model.safetensors", "spec.json")
        ],
        tokens=[f"tokens/{split}.parquet" for split in SPLITS],
        examples=expand(
            "results/tokenizers/{tokenizer}/picture.png", tokenizer=CONFIG.tokenizers
        ),
        samples="samples/samples.csv",
        mae=MAE_PICTURES,
        metrics=[
            "metrics/reconstruction.json",
            "metrics/transformer.json",
            "metrics/generation.json",
            *(["metrics/mae.json"] if MAE_METRICS else []),
            *(
                ["metrics/regions.json"]
                if CONFIG.phantom is not None and REGION_TABLES
                else []
            ),
        ],
    output:
        report="results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "logs/benchmark/report.tsv"
    threads: 2
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        spec=spec("report"),
        code=fingerprint("workflow_scripts.make_report"),
        runs=[f"runs/{name}" for name, spec in CONFIG.tokenizers.items() if spec.steps]
        + (["runs/classifier"] if CONFIG.classifier is not None else [])
        + ["runs/transformer"]
        + [f"runs/{name}" for name in CONFIG.encoders()],
    shell:
        "{PYTHON} -m workflow_scripts.make_report --spec {params.spec:q} --catalog {input.catalog}"
        " --volumes {input.volumes} --statistics {input.statistics} --regions {input.regions} --tokens {input.tokens}"
        " --tokenizer models/{TOKENIZER} --examples {input.examples} --samples {input.samples} --metrics {input.metrics}"
        " --runs {params.runs} --mae {input.mae} --report {output.report} > {log} 2>&1"
