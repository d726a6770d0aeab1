"""Optional packages, grouped in extras of the package: what needs one that is not installed says how to install it."""

import importlib.util

from ray_app.base.errors import UserError

# The packages whose absence shows that an extra is not installed; all of them are in pyproject.toml.
EXTRAS = {
    "serve": ("bm25s", "cachetools", "httpx", "onnxruntime", "orjson", "py3langid", "rapidfuzz", "redis", "usearch"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "vllm": ("vllm",),
    "mlflow": ("mlflow",),
}


class MissingExtraError(UserError, ImportError):
    """A feature needs packages that are not installed; the message has the command that installs them."""


def require_extra(extra: str, feature: str, otherwise: str = "") -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: Name in `EXTRAS`.
        feature: What needs it, such as a config key with its value; begins the message.
        otherwise: How to go on without it; ends the message.

    Raises:
        MissingExtraError: one is missing.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{feature} needs the package {missing[0]}: pip install 'ray-app-relevance[{extra}]' "
            f"(in a checkout: .venv/bin/pip install -e '.[{extra}]'){'; ' * bool(otherwise)}{otherwise}"
        )
