"""Test device: lets the host run two ranks on the CPU (gloo), as torchrun starts them. List one of the plugins first.

accelerate and the host take several processes for several GPUs: so the process group, the device of the mesh and the
placement of the model are told otherwise here. Nothing of the plugin is touched.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin

from tests.engines import gloo


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


class CpuRanks(BasePlugin):
    """DDP. accelerate's MULTI_CPU would wrap a model in which nothing trains, its MULTI_GPU does not."""

    def register(self, cfg: Any) -> None:
        if world() == 1:
            return
        import axolotl.utils.trainer
        from accelerate import DistributedType, PartialState

        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
        PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
        axolotl.utils.trainer.check_cuda_p2p_ib_support = lambda: True
        torch.cuda.set_device = lambda *args: None

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        if world() > 1 and not cfg.fsdp_config:
            cfg.device_map = {"": "cpu"}


class CpuFsdp2(CpuRanks):
    def register(self, cfg: Any) -> None:
        super().register(cfg)
        import torch.distributed.fsdp
        from accelerate.parallelism_config import ParallelismConfig
        from axolotl.loaders.model import ModelLoader

        if world() > 1 and not hasattr(ParallelismConfig, "on_cpu"):
            build = ParallelismConfig.build_device_mesh
            ParallelismConfig.on_cpu = True
            torch.distributed.fsdp.CPUOffloadPolicy.__init__.__defaults__ = (False,)  # nothing to pin for
            ParallelismConfig.build_device_mesh = lambda self, device, *args, **kwargs: build(
                self, "cpu", *args, **kwargs
            )
            place = ModelLoader._set_device_map_config

            def on_cpu(self: Any) -> None:
                place(self)
                if "device_map" in self.model_kwargs:  # of a quantised base: the GPU of this rank
                    self.model_kwargs["device_map"] = {"": "cpu"}

            ModelLoader._set_device_map_config = on_cpu


class CpuDeepSpeed(CpuRanks):
    """With DS_ACCELERATOR=cpu."""

    def register(self, cfg: Any) -> None:
        super().register(cfg)
        if world() > 1:
            gloo.prepare_deepspeed()


class SmallPieces(BasePlugin):
    """A batch of tiny tests is cut into several pieces, too. For processes that end with their runs."""

    def register(self, cfg: Any) -> None:
        from scalebio_plugin.algorithm import pieces

        pieces.ENTRIES = 2**13
