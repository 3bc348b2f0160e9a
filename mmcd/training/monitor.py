"""Watches gradients and activations of the deep layers while a `ContextSiamese` learns."""

import logging
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mmcd.errors import MmcdError
from mmcd.training.patch_config import MonitorConfig

logger = logging.getLogger(__name__)

LAYERS = tuple(
    f"{branch}_{layer}"
    for branch in ("optical", "sar")
    for layer in ("encoder.layer2", "encoder.layer3", "encoder.layer4", "projector.layer1.0", "projector.layer2.0")
)
"""Watched layers, as the model names them: the deep stages of both trunks and the linear maps of both projectors."""

Kind = Literal["activation", "gradient"]


class GradientMonitor(Callback):
    """Records what flows through `LAYERS` and raises an alarm at the first value that is no number.

    Every ``log_interval`` batches the loggers get for each layer the mean over samples and places of the norm over
    channels of the gradient, the mean magnitude of the activation, and mean, standard deviation, smallest and largest
    activation; for the batch, mean and standard deviation of the distance. Every batch is checked before its step
    is taken, so weights never become NaN by it.

    Args:
        config: How often, and whether an alarm stops the run.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config
        self._hooks: list[Any] = []
        self._records: dict[str, dict[str, Tensor]] = {}
        self._watching = self._logging = False

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Attach to the layers."""
        model = module.get_submodule("model")
        for name in LAYERS:
            self._hooks.append(model.get_submodule(name).register_forward_hook(self._hook(name)))
        self._hooks.append(model.register_forward_hook(self._distance))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let go of the layers."""
        self._release()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the layers."""
        self._release()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to watch a batch."""
        self._records.clear()
        self._watching, self._logging = True, batch_idx % self._config.log_interval == 0

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look for values that are no numbers, and write the record."""
        self._watching = False
        fault = self._fault()
        if fault is not None:
            self._alarm(fault, trainer.global_step)
        if self._logging:
            values = {f"{name}/{key}": float(v) for name, record in self._records.items() for key, v in record.items()}
            for each in trainer.loggers:
                each.log_metrics(values, step=trainer.global_step)

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            if not self._watching:
                return
            values = output.detach().float()
            own = {"activation": values.abs().mean()}
            if self._logging:
                own |= {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
            self._records[f"monitor/{name}"] = own
            if output.requires_grad:  # a frozen trunk has none
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: own.update(gradient=gradient.float().norm(dim=1).mean())
                )

        return record

    def _distance(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._watching and self._logging:
            distance = output.distance.detach()
            self._records["monitor/distance"] = {"mean": distance.mean(), "std": distance.std()}

    def _fault(self) -> tuple[str, Kind] | None:
        """Return the layer where the first value that is no number arose, and whether on the way there or back.

        Activations are followed forwards and gradients backwards, since what comes after is a consequence.
        """
        kinds: tuple[Kind, ...] = ("activation", "gradient")
        seen = [
            (name.removeprefix("monitor/"), kind, record[kind])
            for kind in kinds
            for name, record in (self._records.items() if kind == "activation" else reversed(self._records.items()))
            if kind in record
        ]
        if not seen:
            return None
        finite = torch.stack([value for _, _, value in seen]).isfinite().tolist()  # one transfer for all
        return next(((name, kind) for (name, kind, _), fine in zip(seen, finite, strict=True) if not fine), None)

    def _alarm(self, fault: tuple[str, Kind], step: int) -> None:
        layer, kind = fault
        message = f"The {kind} of layer {layer} is not finite in step {step}."
        if self._config.not_finite == "raise":
            raise MmcdError(
                message,
                "Start anew with a lower optimiser.lr, or resume in fp32; the weights of the last checkpoint are not "
                "affected.",
            )
        logger.warning(message)

    def _release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
