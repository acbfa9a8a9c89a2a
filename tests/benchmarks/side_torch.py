"""The PyTorch side: vit-pytorch at the seed's calls; timm or transformers at the presets; eager or compiled."""

import importlib
from typing import Any

import torch
from calls import CALLS
from sides import Measured, Side


def build(architecture: str, setting: str, library: str) -> Any:
    call = CALLS[architecture]
    if setting == "seed":
        module, name = call.peer.split(".")
        cls = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
        return cls(**call.arguments, **(call.head_sizes or {}))
    if library == "timm":
        return importlib.import_module("timm").create_model(call.preset)
    transformers = importlib.import_module("transformers")
    return transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))  # its defaults are CvT-13


def torch_side(architecture: str, setting: str, library: str, size: int, dtype: str, compiled: bool) -> Side:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    torch.manual_seed(0)
    model = build(architecture, setting, library).to(**kind)
    call = torch.compile(model, dynamic=False) if compiled else model

    def logits(images: Any) -> Any:
        out = call(images)
        out = getattr(out, "logits", out)
        return (out[0] + out[1]) / 2 if isinstance(out, tuple) else out  # two heads, in training

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward(batch: int) -> Measured:
        images = torch.randn(batch, 3, size, size, **kind)

        def run() -> None:
            model.eval()
            with torch.inference_mode():
                logits(images)
            finish()

        return run

    def training(batch: int) -> Measured:
        images = torch.randn(batch, 3, size, size, **kind)
        labels = torch.arange(batch, device=device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

        def run() -> None:
            model.train()
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits(images).float(), labels).backward()
            optimiser.step()
            finish()

        return run

    def matmul(size: int) -> Measured:
        x = torch.randn(size, size, **kind)

        def run() -> None:
            torch.matmul(x, x)
            finish()

        return run

    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0
    return Side(sum(p.numel() for p in model.parameters()), forward, training, matmul, peak)
