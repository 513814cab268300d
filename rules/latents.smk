# Optional outcomes of a trained tokenizer: the latents of whole splits, and reconstructed scans.


def split_latents(wildcards):
    """Return the latents' status tables of a split."""
    return status_tables("latents/{split}/{shard}.parquet", [wildcards.split])


def split_reconstructions(wildcards):
    """Return the reconstructions' status tables of a split."""
    return status_tables("reconstructions/{split}/{shard}.parquet", [wildcards.split])


if CONFIG.latents is not None:
    LATENTS = CONFIG.latents.tokenizer

    rule encode_latents:
        input:
            volumes=f"data/volumes/{CONFIG.tokenizers[LATENTS].recipe}/{{split}}/{{shard}}.parquet",
            model=f"models/{LATENTS}/model.safetensors",
            spec=f"models/{LATENTS}/spec.json",
        output:
            status="latents/{split}/{shard}.parquet",
        log:
            "logs/latents/{split}/{shard}.log",
        benchmark:
            "logs/benchmark/latents/{split}/{shard}.tsv"
        threads: 1
        resources:
            gpu=gpus(CONFIG.tokenizers[LATENTS]) and 1,
            mem_mb=by_attempt(6000),
            runtime=by_attempt(240),
        params:
            spec=spec("tokens"),
            code=fingerprint("ct3dlib.inference.latents"),
            device=CONFIG.tokenizers[LATENTS].device,
        shell:
            "{PYTHON} -m workflow_scripts.encode_latents --spec {params.spec:q} --code {params.code}"
            " --device {params.device} --model models/{LATENTS} --volumes {input.volumes}"
            " --status {output.status} > {log} 2>&1"

    rule latents:
        input:
            tables=split_latents,
        output:
            table="latents/{split}.parquet",
            done="latents/{split}.done",
        log:
            "logs/latents/{split}.log",
        resources:
            mem_mb=by_attempt(2000),
            runtime=by_attempt(60),
        params:
            code=fingerprint("workflow_scripts.collect_latents"),
        shell:
            "{PYTHON} -m workflow_scripts.collect_latents --tables {input.tables}"
            " --table {output.table} --done {output.done} > {log} 2>&1"


rule reconstruct:
    input:
        volumes=f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet",
        model=f"models/{TOKENIZER}/model.safetensors",
        spec=f"models/{TOKENIZER}/spec.json",
    output:
        status="reconstructions/{split}/{shard}.parquet",
    log:
        "logs/reconstructions/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/reconstructions/{split}/{shard}.tsv"
    threads: 1
    resources:
        gpu=gpus(CONFIG.tokenizers[TOKENIZER]) and 1,
        mem_mb=by_attempt(8000),
        runtime=by_attempt(480),
    params:
        spec=spec("tokens"),
        code=fingerprint("ct3dlib.inference.reconstructions"),
        device=CONFIG.tokenizers[TOKENIZER].device,
    shell:
        "{PYTHON} -m workflow_scripts.store_reconstructions --spec {params.spec:q}"
        " --code {params.code} --device {params.device} --model models/{TOKENIZER}"
        " --volumes {input.volumes} --status {output.status} > {log} 2>&1"


rule reconstructions:
    input:
        tables=split_reconstructions,
    output:
        table="reconstructions/{split}.parquet",
        done="reconstructions/{split}.done",
    log:
        "logs/reconstructions/{split}.log",
    localrule: True
    params:
        code=fingerprint("workflow_scripts.collect_tables"),
    shell:
        "{PYTHON} -m workflow_scripts.collect_tables --tables {input.tables}"
        " --table {output.table} --done {output.done} > {log} 2>&1"
