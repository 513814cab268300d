# Masks of regions and lesions, told by a decoder over the masked autoencoder's encoder.

if CONFIG.mae_segment is not None:

    def mask_tables(kind, *splits):
        """Return the status tables of a kind of masks, none where the segmenter learns no such."""
        if kind not in CONFIG.mae_segment.masks:
            return []
        return status_tables(
            f"data/{kind}/{CONFIG.mae_segment.recipe}/{{split}}/{{shard}}.parquet",
            splits,
        )

    rule mae_segment:
        input:
            train=recipe_tables(CONFIG.mae_segment, "train"),
            tune=recipe_tables(CONFIG.mae_segment, "tune"),
            regions=mask_tables("regions", "train", "tune"),
            lesions=mask_tables("lesions", "train", "tune"),
            start=start_files(CONFIG.mae_segment.init_from),
        output:
            model="models/mae_segment/model.safetensors",
            spec="models/mae_segment/spec.json",
        log:
            "logs/mae_segment.log",
        benchmark:
            "logs/benchmark/mae_segment.tsv"
        threads: cores(CONFIG.mae_segment)
        resources:
            gpu=gpus(CONFIG.mae_segment),
            mem_mb=by_attempt(16000),
            runtime=by_attempt(1440),
        params:
            spec=spec("mae_segment"),
            recipe=CONFIG.recipes[CONFIG.mae_segment.recipe].model_dump_json(),
            code=fingerprint("workflow_scripts.train_segmenter"),
            launch=launch(CONFIG.mae_segment),
        shell:
            "{PYTHON} {params.launch} workflow_scripts.train_segmenter --spec {params.spec:q}"
            " --recipe {params.recipe:q} --train {input.train} --tune {input.tune}"
            " --regions {input.regions} --lesions {input.lesions}"
            " --code {params.code} --run runs/mae_segment --model models/mae_segment > {log} 2>&1"

    rule evaluate_mae_segment:
        input:
            model=rules.mae_segment.output.model,
            spec=rules.mae_segment.output.spec,
            train=recipe_tables(CONFIG.mae_segment, "train"),
            valid=recipe_tables(CONFIG.mae_segment, "valid"),
            regions=mask_tables("regions", "train", "valid"),
            lesions=mask_tables("lesions", "train", "valid"),
        output:
            metrics="metrics/mae/segment.json",
            example="results/mae/segmentation.png",
        log:
            "logs/evaluate_mae_segment.log",
        benchmark:
            "logs/benchmark/evaluate_mae_segment.tsv"
        threads: CONFIG.mae_segment.threads
        resources:
            gpu=gpus(CONFIG.mae_segment) and 1,
            mem_mb=by_attempt(16000),
            runtime=by_attempt(240),
        params:
            spec=spec("mae_segment"),
            code=fingerprint("workflow_scripts.evaluate_segmenter"),
        shell:
            "{PYTHON} -m workflow_scripts.evaluate_segmenter --spec {params.spec:q}"
            " --train {input.train} --valid {input.valid} --regions {input.regions}"
            " --lesions {input.lesions} --model models/mae_segment --example {output.example} --metrics {output.metrics}"
            " > {log} 2>&1"
