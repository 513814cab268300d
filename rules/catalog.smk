if CONFIG.phantom is not None:

    rule phantom:
        output:
            cohort=f"{RAW_ROOT}/dataset/cohort.json",
        log:
            "logs/phantom.log",
        benchmark:
            "logs/benchmark/phantom.tsv"
        threads: 2
        resources:
            mem_mb=by_attempt(3000),
            runtime=by_attempt(60),
        params:
            spec=spec("phantom"),
            code=fingerprint("workflow_scripts.write_phantom"),
        shell:
            "{PYTHON} -m workflow_scripts.write_phantom --spec {params.spec:q} --root {RAW_ROOT:q}"
            " --workers {threads} > {log} 2>&1"


def user_tables(wildcards):
    """Return the tables under the raw root that the user wrote: editing one is a new catalog."""
    names = [CONFIG.catalog.split_csv, "metadata.csv" if DATASET == "folder" else None]
    paths = [Path(RAW_ROOT, name).absolute() for name in names if name]
    return [str(path) for path in paths if path.is_file()]


rule catalog:
    input:
        user_tables,
        # A cohort that the project makes must be there first; real scans just lie there.
        rules.phantom.output.cohort if CONFIG.phantom is not None else [],
    output:
        catalog=f"data/catalog/{DATASET}.parquet",
        shards=status_tables("data/catalog/shards/{split}/{shard}.parquet", SPLITS),
    log:
        "logs/catalog.log",
    benchmark:
        "logs/benchmark/catalog.tsv"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(120),
    params:
        spec=spec("catalog"),
        code=fingerprint("workflow_scripts.make_catalog"),
    shell:
        "{PYTHON} -m workflow_scripts.make_catalog --spec {params.spec:q} --root {RAW_ROOT:q}"
        " --private {PRIVATE} --assignments data/catalog/assignments.json --catalog {output.catalog}"
        " --shards data/catalog/shards > {log} 2>&1"
