RECIPES = sorted(
    {
        *([CONFIG.regions.recipe] if CONFIG.regions is not None else []),
        *(t.recipe for t in CONFIG.tokenizers.values()),
    }
)


def recipe_volumes(wildcards):
    """Return the status tables of all volumes of a recipe."""
    return status_tables(
        f"data/volumes/{wildcards.recipe}/{{split}}/{{shard}}.parquet", SPLITS
    )


rule statistics:
    input:
        catalog=f"data/catalog/{DATASET}.parquet",
        volumes=recipe_volumes,
    output:
        statistics="data/volumes/{recipe}/statistics.json",
    log:
        "logs/statistics/{recipe}.log",
    benchmark:
        "logs/benchmark/statistics/{recipe}.tsv"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        code=fingerprint("workflow_scripts.make_statistics"),
    shell:
        "{PYTHON} -m workflow_scripts.make_statistics --catalog {input.catalog}"
        " --volumes {input.volumes} --statistics {output.statistics} > {log} 2>&1"


rule qc:
    input:
        volumes="data/volumes/{recipe}/{split}/{shard}.parquet",
    output:
        sheet="results/qc/{recipe}/{split}/{shard}.png",
    log:
        "logs/qc/{recipe}/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/qc/{recipe}/{split}/{shard}.tsv"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(60),
    params:
        spec=spec("recipes.{recipe}"),
        code=fingerprint("workflow_scripts.draw_qc"),
    shell:
        "{PYTHON} -m workflow_scripts.draw_qc --spec {params.spec:q} --volumes {input.volumes}"
        " --sheet {output.sheet} > {log} 2>&1"
