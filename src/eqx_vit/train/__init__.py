"""The training program behind `eqx-vit train`: settings, data, one step, the loop around it, and what it leaves behind.

A run is a folder:

    config.json                 the settings, the model's config, the classes, how pixels are prepared
    metrics.jsonl               one line an epoch, and a last one with the test result
    best.safetensors            the averaged (EMA) weights of the epoch with the best validation accuracy
    last.safetensors            the averaged weights of the last epoch; both are read by `eqx_vit.load`
    training_state.safetensors  all that `--resume` needs: raw and averaged weights, optimiser, step, metrics so far
    curves.png, samples.png     loss and accuracy by epoch; test images with predicted and true labels
"""
