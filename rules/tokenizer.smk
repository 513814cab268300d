def tokenizer_volumes(split):
    """Return an input function: the status tables of the volumes that a tokenizer reads."""

    def tables(wildcards):
        recipe = CONFIG.tokenizers[wildcards.tokenizer].recipe
        return status_tables(
            f"data/volumes/{recipe}/{{split}}/{{shard}}.parquet", [split]
        )

    return tables


def tokenizer_recipe(wildcards):
    """Return the recipe of a tokenizer's volumes as JSON."""
    return CONFIG.recipes[
        CONFIG.tokenizers[wildcards.tokenizer].recipe
    ].model_dump_json()


def tokenizer_start(wildcards):
    """Return the model that a tokenizer's training starts from, if there is one."""
    return start_files(CONFIG.tokenizers[wildcards.tokenizer].init_from)


for TOKENIZER_NAME in CONFIG.tokenizers:
    check_start(
        f"tokenizers.{TOKENIZER_NAME}",
        CONFIG.tokenizers[TOKENIZER_NAME].init_from,
        makes=TOKENIZER_NAME,
    )


def tokenizer_features(wildcards):
    """Return the pipeline's own feature network where a tokenizer's loss listens to it."""
    wanted = CONFIG.tokenizers[wildcards.tokenizer].wants_features
    files = ["models/features/model.safetensors", "models/features/spec.json"]
    return files if wanted else []


def tokenizer_launch(wildcards):
    """Return what starts a tokenizer's training."""
    return launch(CONFIG.tokenizers[wildcards.tokenizer])


def tokenizer_cores(wildcards):
    """Return how many CPU cores a tokenizer's training asks for."""
    return cores(CONFIG.tokenizers[wildcards.tokenizer])


def tokenizer_device(wildcards):
    """Return the device that a tokenizer runs on."""
    return CONFIG.tokenizers[wildcards.tokenizer].device


def tokenizer_gpus(wildcards):
    """Return how many GPUs a tokenizer's training asks for."""
    return gpus(CONFIG.tokenizers[wildcards.tokenizer])


rule tokenizer:
    input:
        train=tokenizer_volumes("train"),
        tune=tokenizer_volumes("tune"),
        start=tokenizer_start,
        features=tokenizer_features,
    output:
        model="models/{tokenizer}/model.safetensors",
        spec="models/{tokenizer}/spec.json",
    log:
        "logs/tokenizer/{tokenizer}.log",
    benchmark:
        "logs/benchmark/tokenizer/{tokenizer}.tsv"
    threads: tokenizer_cores
    resources:
        gpu=tokenizer_gpus,
        mem_mb=by_attempt(8000),
        runtime=by_attempt(1440),
    params:
        spec=spec("tokenizers.{tokenizer}"),
        recipe=tokenizer_recipe,
        code=fingerprint("workflow_scripts.train_tokenizer"),
        launch=tokenizer_launch,
        features=lambda wildcards, input: (
            "--features models/features" if input.features else ""
        ),
    shell:
        "{PYTHON} {params.launch} workflow_scripts.train_tokenizer --spec {params.spec:q}"
        " --recipe {params.recipe:q} --train {input.train} --tune {input.tune}"
        " --code {params.code} --run runs/{wildcards.tokenizer} --model models/{wildcards.tokenizer}"
        " {params.features} > {log} 2>&1"


rule evaluate_tokenizer:
    input:
        model="models/{tokenizer}/model.safetensors",
        spec="models/{tokenizer}/spec.json",
        train=tokenizer_volumes("train"),
        valid=tokenizer_volumes("valid"),
    output:
        metrics="metrics/reconstruction/{tokenizer}.json",
        example=multiext(
            "results/tokenizers/{tokenizer}/", "picture.png", "movie.gif", "movie.mp4"
        ),
    log:
        "logs/evaluate_tokenizer/{tokenizer}.log",
    benchmark:
        "logs/benchmark/evaluate_tokenizer/{tokenizer}.tsv"
    threads: 1
    resources:
        gpu=tokenizer_gpus,
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        spec=spec("tokens"),
        code=fingerprint("workflow_scripts.evaluate_tokenizer"),
        device=tokenizer_device,
    shell:
        "{PYTHON} -m workflow_scripts.evaluate_tokenizer --spec {params.spec:q} --device {params.device}"
        " --model models/{wildcards.tokenizer} --train {input.train} --valid {input.valid}"
        " --example results/tokenizers/{wildcards.tokenizer} --metrics {output.metrics} > {log} 2>&1"


rule reconstruction_metrics:
    input:
        expand("metrics/reconstruction/{tokenizer}.json", tokenizer=CONFIG.tokenizers),
    output:
        "metrics/reconstruction.json",
    log:
        "logs/reconstruction_metrics.log",
    localrule: True
    shell:
        "{PYTHON} -m workflow_scripts.join_metrics --parts {input} --metrics {output} > {log} 2>&1"
