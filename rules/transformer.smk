rule transformer:
    input:
        catalog=f"data/catalog/{DATASET}.parquet",
        tables=[f"tokens/{split}.parquet" for split in ("train", "tune")],
        done=[f"tokens/{split}.done" for split in ("train", "tune")],
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
        code=fingerprint("ct3dlib.training.loop", "ct3dlib.objectives.maskgit"),
        launch=launch(CONFIG.transformer),
    shell:
        "{params.launch} -m workflow_scripts.train_transformer --spec {params.spec:q}"
        " --catalog {input.catalog} --tokens tokens --tokenizer models/{TOKENIZER}"
        " --code {params.code} --run runs/transformer --model models/transformer > {log} 2>&1"


rule samples:
    input:
        model="models/transformer/model.safetensors",
        spec="models/transformer/spec.json",
        tokenizer=f"models/{TOKENIZER}/model.safetensors",
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
        code=fingerprint("ct3dlib.inference.generate"),
    shell:
        "{PYTHON} -m workflow_scripts.sample --spec {params.spec:q} --model models/transformer"
        " --tokenizer models/{TOKENIZER} --folder samples --table {output.table} > {log} 2>&1"


rule evaluate_samples:
    input:
        table="samples/samples.csv",
        tokenizer=f"models/{TOKENIZER}/model.safetensors",
        valid=status_tables(
            f"data/volumes/{TOKEN_RECIPE}/{{split}}/{{shard}}.parquet", ["valid"]
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
        code=fingerprint("ct3dlib.inference.evaluate"),
    shell:
        "{PYTHON} -m workflow_scripts.evaluate_samples"
        " --tokenizer models/{TOKENIZER} --samples {input.table} --valid {input.valid}"
        " --metrics {output.metrics} > {log} 2>&1"
