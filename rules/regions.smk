REGION_TABLES = (
    status_tables(
        f"data/regions/{CONFIG.regions.recipe}/{{split}}/{{shard}}.parquet", SPLITS
    )
    if CONFIG.regions is not None
    else []
)

if CONFIG.regions is not None:

    rule regions:
        name:
            # A cluster's profile sends what asks for a GPU to another partition.
            "regions_gpu" if CONFIG.regions.gpus else "regions"
        input:
            volumes="data/volumes/{recipe}/{split}/{shard}.parquet",
        output:
            status="data/regions/{recipe}/{split}/{shard}.parquet",
        log:
            "logs/regions/{recipe}/{split}/{shard}.log",
        benchmark:
            "logs/benchmark/regions/{recipe}/{split}/{shard}.tsv"
        resources:
            # Room for CUDA and the network; an estimate, a retry gets more.
            mem_mb=by_attempt(10000 if CONFIG.regions.gpus else 4000),
            runtime=by_attempt(240),
            gpu=CONFIG.regions.gpus,
        params:
            spec=spec("regions"),
            code=fingerprint("ct3dlib.regions.shard"),
        shell:
            "{PYTHON} -m workflow_scripts.store_regions --spec {params.spec:q} --code {params.code}"
            " --root {RAW_ROOT:q} --private {PRIVATE} --volumes {input.volumes}"
            " --status {output.status} > {log} 2>&1"


if CONFIG.phantom is not None and CONFIG.regions is not None:

    rule evaluate_regions:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            regions=status_tables(
                f"data/regions/{CONFIG.regions.recipe}/{{split}}/{{shard}}.parquet",
                ["valid"],
            ),
        output:
            metrics="metrics/regions.json",
        log:
            "logs/evaluate_regions.log",
        resources:
            mem_mb=by_attempt(4000),
            runtime=by_attempt(60),
        params:
            code=fingerprint("workflow_scripts.evaluate_regions"),
        shell:
            "{PYTHON} -m workflow_scripts.evaluate_regions --root {RAW_ROOT:q} --private {PRIVATE}"
            " --catalog {input.catalog} --regions {input.regions} --metrics {output.metrics}"
            " > {log} 2>&1"
