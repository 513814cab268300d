TOKENIZER = CONFIG.tokens.tokenizer
TOKEN_RECIPE = CONFIG.tokenizers[TOKENIZER].recipe


def split_tokens(wildcards):
    """Return the token status tables of a split."""
    return status_tables("tokens/{split}/{shard}.parquet", [wildcards.split])


rule encode:
    input:
        volumes=f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet",
        model=f"models/{TOKENIZER}/model.safetensors",
        spec=f"models/{TOKENIZER}/spec.json",
    output:
        status="tokens/{split}/{shard}.parquet",
    log:
        "logs/tokens/{split}/{shard}.log",
    benchmark:
        "logs/benchmark/tokens/{split}/{shard}.tsv"
    threads: 1
    resources:
        gpu=gpus(CONFIG.tokenizers[TOKENIZER]) and 1,
        mem_mb=by_attempt(6000),
        runtime=by_attempt(240),
    params:
        spec=spec("tokens"),
        code=fingerprint("ct3dlib.inference.encode"),
        device=CONFIG.tokenizers[TOKENIZER].device,
    shell:
        "{PYTHON} -m workflow_scripts.encode_tokens --spec {params.spec:q} --code {params.code}"
        " --device {params.device}"
        " --model models/{TOKENIZER} --volumes {input.volumes} --status {output.status} > {log} 2>&1"


rule tokens:
    input:
        catalog=f"data/catalog/{DATASET}.parquet",
        tables=split_tokens,
    output:
        table="tokens/{split}.parquet",
        done="tokens/{split}.done",
    log:
        "logs/tokens/{split}.log",
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(60),
    params:
        code=fingerprint("workflow_scripts.collect_tokens"),
    shell:
        "{PYTHON} -m workflow_scripts.collect_tokens --split {wildcards.split}"
        " --catalog {input.catalog} --tables {input.tables} --table {output.table}"
        " --done {output.done} > {log} 2>&1"
