rule lesions:
    input:
        volumes="data/volumes/{recipe}/{split}/{shard}.parquet",
        rows="data/catalog/shards/{split}/{shard}.parquet",
    output:
        status="data/lesions/{recipe}/{split}/{shard}.parquet",
    log:
        "logs/lesions/{recipe}/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/lesions/{recipe}/{split}/{shard}.tsv"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(120),
    params:
        code=fingerprint("ct3dlib.regions.lesions"),
    shell:
        "{PYTHON} -m workflow_scripts.store_lesions --code {params.code} --root {RAW_ROOT:q}"
        " --private {PRIVATE} --volumes {input.volumes} --rows {input.rows}"
        " --status {output.status} > {log} 2>&1"
