def volumes_spec(wildcards):
    """Return what of a recipe decides what is stored; window and range are the models' matter."""
    return CONFIG.recipes[wildcards.recipe].model_dump_json(exclude={"window", "range"})


rule volumes:
    input:
        rows="data/catalog/shards/{split}/{shard}.parquet",
    output:
        status="data/volumes/{recipe}/{split}/{shard}.parquet",
    log:
        "logs/volumes/{recipe}/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/volumes/{recipe}/{split}/{shard}.tsv"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(240),
    params:
        spec=volumes_spec,
        code=fingerprint("ct3dlib.cohort.shard"),
    shell:
        "{PYTHON} -m workflow_scripts.store_volumes --spec {params.spec:q} --code {params.code}"
        " --root {RAW_ROOT:q} --private {PRIVATE} --rows {input.rows} --status {output.status}"
        " > {log} 2>&1"
