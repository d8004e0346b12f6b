# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Grad-CAM and Grad-CAM++ as an inferer: any classifier in, the maps of all its classes out, for any batch size.

It needs gradients at inference. So it enables them where an evaluator has switched them off, and it can never be
exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss.cams import gradient_activation_maps, pool_maps, resize_maps
from monai_wsss.networks import ModalityNetworks

__all__ = ["GradientCAMInferer"]


class GradientCAMInferer(Inferer):
    """Grad-CAM maps of every class, at the size of the input.

    It takes one forward pass, then one backward pass per class, from its logit down to the target layer only. The
    images of a batch do not mix, because the network is evaluated in eval mode (each module's own mode is restored
    afterwards). No hook stays on the network, also after an error; the parameters' ``grad`` is neither read nor
    written. Inside autocast it runs in float32: fp16 gradients of an average over many pixels underflow. Grad-CAM++
    leaves out the factor exp(Y) of each map, which overflows for confident networks and vanishes with normalization.

    The maps are not negative and their mean is no logit. To have :func:`monai_wsss.refinement.to_mask` gate absent
    classes, choose ``gate="predicted"`` here: their maps are then zero, which every pooling calls absent.

    A :class:`~monai_wsss.networks.ModalityNetworks` is explained network by network, (B, G*K, *S).  Of networks with a
    map of the background (``background_map``), that is explained too and stands first, (B, K+1, *S); the logit that
    ``gate`` asks is then that of the class minus that of the background.

    Args:
        target_layer: module of the network, or its name in ``network.named_modules()``, whose output (B, F, *S) is
            explained; as a rule the last layer with space. If it is called several times, its last call counts. For
            one network per modality, the name within each network.
        variant: ``"gradcam"`` or ``"gradcam++"``.
        gate: ``"predicted"`` zeroes the maps of classes whose logit does not exceed 0, or the network's
            ``presence_level`` where it has one; ``"none"`` keeps all.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...                         nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     maps = GradientCAMInferer("1")(torch.rand(3, 1, 8, 8), network)
        >>> maps.shape
        torch.Size([3, 2, 8, 8])
    """

    def __init__(self, target_layer: str | nn.Module, *, variant: str = "gradcam", gate: str = "none") -> None:
        super().__init__()
        check_choice("variant", variant, ("gradcam", "gradcam++"))
        check_choice("gate", gate, ("none", "predicted"))
        self.target_layer = target_layer
        self.variant = variant
        self.gate = gate

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give the maps of ``inputs``.

        Args:
            inputs: (B, C, *S).
            network: gives logits (B, K), or, if it has the attribute ``pooling``, maps (B, K, *S) to be pooled.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            (B, K, *S), or (B, G*K, *S) for several modalities; float32 or wider, not negative, without graph.

        Raises:
            ValueError: the target layer does not exist, was not called or gives no (B, F, *S), or the network gives
                neither logits nor maps with a pooling.
        """
        check_shape("inputs", inputs, "(B, C, *S)")
        if isinstance(network, ModalityNetworks):
            return torch.cat([self(part, member, *args, **kwargs) for member, part in network.parts(inputs)], dim=1)
        # Tensors made in inference mode cannot take part in a graph; a clone made outside it can.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(inputs.device.type, enabled=False),
            _eval_mode(network),
        ):
            images = inputs.clone() if inputs.is_inference() else inputs
            with _captured(_find_layer(network, self.target_layer)) as captured:
                logits = _image_logits(network, network(images, *args, **kwargs))
            if not captured:
                raise ValueError(f"The target layer {self.target_layer!r} was not called in the forward pass.")
            maps = self._maps(logits, captured[-1])
            if self.gate == "predicted":
                maps = maps * _presence(logits, network).to(maps).reshape(*logits.shape, *[1] * (maps.ndim - 2))
        return resize_maps(maps, inputs.shape[2:])

    def _maps(self, logits: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Run one backward pass per class, from the sum of its logits: images are independent in eval mode."""
        maps = []
        for k in range(logits.shape[1]):
            last = k == logits.shape[1] - 1
            (gradients,) = torch.autograd.grad(
                logits[:, k].sum(), activations, retain_graph=not last, materialize_grads=True
            )
            maps.append(gradient_activation_maps(activations.detach(), gradients, variant=self.variant))
        return torch.stack(maps, dim=1)


def _presence(logits: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Tell which logits (B, K) exceed the network's level; a background, which is first, is always there."""
    level = getattr(network, "presence_level", None)
    level = 0 if level is None else level
    if not getattr(network, "background_map", False):
        return logits > level
    return F.pad(logits[:, 1:] - logits[:, :1] > level, (1, 0), value=True)


def _find_layer(network: nn.Module, target_layer: str | nn.Module) -> nn.Module:
    """Find the layer by its name, or check that it belongs to the network."""
    modules = dict(network.named_modules())
    if isinstance(target_layer, str):
        if target_layer not in modules:
            names = ", ".join(filter(None, modules))
            raise ValueError(f"Expected `target_layer` to be one of {names}; got {target_layer!r}.")
        return modules[target_layer]
    if not any(module is target_layer for module in modules.values()):
        raise ValueError(f"Expected `target_layer` to be a module of the network, got {target_layer!r}.")
    return target_layer


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Put all into eval mode; afterwards every module is in its own former mode (frozen batch norms stay frozen)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _captured(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the layer's outputs as leaves, so that gradients stop there and earlier activations can be freed."""
    captured: list[torch.Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim not in (4, 5):
            what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"Expected the target layer to give (B, F, *S), got {what}: choose another layer.")
        leaf = output.detach().requires_grad_()
        captured.append(leaf)
        # The clone may be overwritten in place by a following ReLU; the leaf keeps its values.
        return leaf.clone()

    handle = layer.register_forward_hook(cut)
    try:
        yield captured
    finally:
        handle.remove()


def _image_logits(network: nn.Module, output: Any) -> torch.Tensor:
    """Give logits (B, K): the output itself, or maps pooled as the network was trained."""
    if isinstance(output, torch.Tensor) and output.ndim == 2:
        return float32_or_wider(output)
    pooling = getattr(network, "pooling", None)
    if not isinstance(output, torch.Tensor) or pooling is None:
        what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"Expected the network to give logits (B, K), or maps and an attribute `pooling`; got {what}.")
    return pool_maps(
        output,
        pooling,
        topk_share=getattr(network, "topk_share", 0.1),
        lse_sharpness=getattr(network, "lse_sharpness", 5.0),
    )
