rule regions:
    input:
        volumes="data/volumes/{recipe}/{split}/{shard}.parquet",
    output:
        status="data/regions/{recipe}/{split}/{shard}.parquet",
    log:
        "logs/regions/{recipe}/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/regions/{recipe}/{split}/{shard}.tsv"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(240),
    params:
        spec=spec("regions"),
        code=fingerprint("ct3dlib.regions.shard"),
    shell:
        "{PYTHON} -m workflow_scripts.store_regions --spec {params.spec:q} --code {params.code}"
        " --volumes {input.volumes} --status {output.status} > {log} 2>&1"


if CONFIG.phantom is not None:

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
            spec=spec("regions"),
            code=fingerprint("workflow_scripts.evaluate_regions"),
        shell:
            "{PYTHON} -m workflow_scripts.evaluate_regions --spec {params.spec:q} --root {RAW_ROOT:q}"
            " --private {PRIVATE} --catalog {input.catalog} --regions {input.regions} --metrics {output.metrics}"
            " > {log} 2>&1"
