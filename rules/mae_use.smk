# What trained volume encoders say of whole splits: predictions and embeddings.


def split_embeddings(wildcards):
    """Return the embeddings' tables of a split."""
    return status_tables("embeddings/{split}/{shard}.parquet", [wildcards.split])


def predicted_volumes(wildcards):
    """Return the volumes of a split that the fine-tuned model looks at."""
    return recipe_tables(CONFIG.mae_finetune, wildcards.split)


if CONFIG.mae_finetune is not None:

    rule mae_predict:
        input:
            catalog=f"data/catalog/{DATASET}.parquet",
            volumes=predicted_volumes,
            model="models/mae_finetune/model.safetensors",
            spec="models/mae_finetune/spec.json",
        output:
            table="predictions/{split}.csv",
        log:
            "logs/predictions/{split}.log",
        benchmark:
            "logs/benchmark/predictions/{split}.tsv"
        threads: 1
        resources:
            gpu=gpus(CONFIG.mae_finetune) and 1,
            mem_mb=by_attempt(8000),
            runtime=by_attempt(240),
        params:
            code=fingerprint("workflow_scripts.predict"),
            device=CONFIG.mae_finetune.device,
        shell:
            "{PYTHON} -m workflow_scripts.predict --device {params.device} --split {wildcards.split}"
            " --model models/mae_finetune --catalog {input.catalog} --volumes {input.volumes}"
            " --table {output.table} > {log} 2>&1"


if CONFIG.embeddings is not None:
    EMBEDDER = CONFIG.embeddings.model
    EMBEDDER_SECTION = CONFIG.encoders()[EMBEDDER]

    rule embed_shard:
        input:
            volumes=f"data/volumes/{EMBEDDER_SECTION.recipe}/{{split}}/{{shard}}.parquet",
            model=f"models/{EMBEDDER}/model.safetensors",
            spec=f"models/{EMBEDDER}/spec.json",
        output:
            table="embeddings/{split}/{shard}.parquet",
        log:
            "logs/embeddings/{split}/{shard}.log",
        benchmark:
            "logs/benchmark/embeddings/{split}/{shard}.tsv"
        threads: 1
        resources:
            gpu=gpus(EMBEDDER_SECTION) and 1,
            mem_mb=by_attempt(8000),
            runtime=by_attempt(240),
        params:
            spec=spec("embeddings"),
            code=fingerprint("workflow_scripts.embed"),
            device=EMBEDDER_SECTION.device,
        shell:
            "{PYTHON} -m workflow_scripts.embed --spec {params.spec:q} --device {params.device}"
            " --model models/{EMBEDDER} --volumes {input.volumes} --table {output.table} > {log} 2>&1"

    rule mae_embed:
        input:
            tables=split_embeddings,
        output:
            table="embeddings/{split}.parquet",
        log:
            "logs/embeddings/{split}.log",
        resources:
            mem_mb=by_attempt(2000),
            runtime=by_attempt(60),
        params:
            code=fingerprint("workflow_scripts.join_embeddings"),
        shell:
            "{PYTHON} -m workflow_scripts.join_embeddings --tables {input.tables}"
            " --table {output.table} > {log} 2>&1"


# What the masked autoencoder leaves: its models are inputs of these.
MAE_OUTCOMES = [
    *(["metrics/mae.json"] if MAE_METRICS else []),
    *(
        expand("embeddings/{split}.parquet", split=SPLITS)
        if CONFIG.embeddings is not None
        else []
    ),
]
