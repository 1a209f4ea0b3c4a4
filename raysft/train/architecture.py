"""How any program makes a network of a delivered model's architecture: what to call, and with what
arguments.
"""

from __future__ import annotations

TIMM = "timm:"
_OWN = frozenset({"raysft.train.smallnet:small_cnn"})  # the networks that raysft brings along

# Networks whose auxiliary training heads are left out: one loss, on the main head.
_AUXILIARY = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def torchvision_arguments(name: str, image_size: int | None) -> dict[str, bool | int]:
    """What torchvision's builder of `name` takes besides the number of classes."""
    size = {"image_size": image_size} if name.startswith("vit_") and image_size else {}
    return {**_AUXILIARY.get(name, {}), **size}


def is_torchvision(name: str) -> bool:
    """Whether `model.name` names one of torchvision's classifiers."""
    return ":" not in name


def foreign_module(name: str) -> str | None:
    """The module of a person's own that makes the network `name`; None for a network of raysft,
    torchvision or timm.

    Whoever sends a model can write any module there: to import it is to run it, and so are the
    functions in it.
    """
    if is_torchvision(name) or name.startswith(TIMM) or name in _OWN:
        return None
    return name.partition(":")[0]


def network_call(
    name: str, classes: int, image_size: int | None
) -> tuple[str, dict[str, str | bool | int]]:
    """(dotted name, keyword arguments) of the call that makes the network of a delivered model,
    without weights.
    """
    if name.startswith(TIMM):
        return "timm.create_model", {
            "model_name": name.removeprefix(TIMM),
            "num_classes": classes,
            **_timm_size(name.removeprefix(TIMM), image_size),
        }
    if not is_torchvision(name):
        return name.replace(":", "."), {"num_classes": classes}
    return f"torchvision.models.{name}", {
        "num_classes": classes,
        **torchvision_arguments(name, image_size),
    }


def _timm_size(name: str, image_size: int | None) -> dict[str, int]:
    """`img_size` where the network takes it, as transformers do; only trying tells."""
    if image_size is None:
        return {}
    import timm

    try:
        timm.create_model(name, img_size=image_size)
    except TypeError:
        return {}
    return {"img_size": image_size}
