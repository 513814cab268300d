rule transformer:
    input:
        catalog=f"data/catalog/{DATASET}.parquet",
        tables=[f"tokens/{split}.parquet" for split in ("train", "tune")],
        done=[f"tokens/{split}.done" for split in ("train", "tune")],
        texts=[CONFIG.transformer.text.embeddings] if CONFIG.transformer.text else [],
        tokenizer=[
            f"models/{TOKENIZER}/{name}" for name in ("model.safetensors", "spec.json")
        ],
    output:
        model="models/transformer/model.safetensors",
        spec="models/transformer/spec.json",
    log:
        "logs/transformer.log",
    benchmark:
        "logs/benchmark/transformer.tsv"
    threads: cores(CONFIG.transformer)
    resources:
        gpu=gpus(CONFIG.transformer),
        mem_mb=by_attempt(8000),
        runtime=by_attempt(1440),
    params:
        spec=spec("transformer"),
        code=fingerprint("workflow_scripts.train_transformer"),
        launch=launch(CONFIG.transformer),
    shell:
        "{PYTHON} {params.launch} workflow_scripts.train_transformer --spec {params.spec:q}"
        " --catalog {input.catalog} --tokens tokens --tokenizer models/{TOKENIZER}"
        " --code {params.code} --run runs/transformer --model models/transformer > {log} 2>&1"


rule evaluate_transformer:
    input:
        model="models/transformer/model.safetensors",
        spec="models/transformer/spec.json",
        catalog=f"data/catalog/{DATASET}.parquet",
        tables=[f"tokens/{split}.parquet" for split in SPLITS],
        texts=[CONFIG.transformer.text.embeddings] if CONFIG.transformer.text else [],
    output:
        metrics="metrics/transformer.json",
    log:
        "logs/evaluate_transformer.log",
    benchmark:
        "logs/benchmark/evaluate_transformer.tsv"
    threads: 1
    resources:
        gpu=gpus(CONFIG.transformer) and 1,
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        spec=spec("transformer"),
        code=fingerprint("workflow_scripts.evaluate_transformer"),
    shell:
        "{PYTHON} -m workflow_scripts.evaluate_transformer --spec {params.spec:q}"
        " --catalog {input.catalog} --tokens tokens --model models/transformer"
        " --metrics {output.metrics} > {log} 2>&1"


rule samples:
    input:
        model="models/transformer/model.safetensors",
        spec="models/transformer/spec.json",
        tokenizer=[
            f"models/{TOKENIZER}/{name}" for name in ("model.safetensors", "spec.json")
        ],
    output:
        table="samples/samples.csv",
    log:
        "logs/samples.log",
    benchmark:
        "logs/benchmark/samples.tsv"
    threads: 2
    resources:
        gpu=gpus(CONFIG.transformer) and 1,
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        spec=spec("samples"),
        code=fingerprint("workflow_scripts.sample"),
        device=CONFIG.transformer.device,
    shell:
        "{PYTHON} -m workflow_scripts.sample --spec {params.spec:q} --device {params.device} --model models/transformer"
        " --tokenizer models/{TOKENIZER} --folder samples --table {output.table} > {log} 2>&1"


rule evaluate_samples:
    input:
        table="samples/samples.csv",
        tokenizer=[
            f"models/{TOKENIZER}/{name}" for name in ("model.safetensors", "spec.json")
        ],
        train=status_tables(
            f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", ["train"]
        ),
        valid=status_tables(
            f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", ["valid"]
        ),
        network=CONFIG.generation.weights or [],
        catalog=f"data/catalog/{DATASET}.parquet",
        classifier=(
            ["models/classifier/model.safetensors", "models/classifier/spec.json"]
            if CONFIG.classifier is not None
            else []
        ),
    output:
        metrics="metrics/generation.json",
    log:
        "logs/evaluate_samples.log",
    threads: 2
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        spec=spec("generation"),
        code=fingerprint("workflow_scripts.evaluate_samples"),
        device=CONFIG.tokenizers[TOKENIZER].device,
        classifier=(
            "--classifier models/classifier" if CONFIG.classifier is not None else ""
        ),
    shell:
        "{PYTHON} -m workflow_scripts.evaluate_samples --spec {params.spec:q} --device {params.device}"
        " --catalog {input.catalog} --tokenizer models/{TOKENIZER} --samples {input.table} --train {input.train}"
        " --valid {input.valid} {params.classifier} --metrics {output.metrics} > {log} 2>&1"
