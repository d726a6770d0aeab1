"""The online app: HTTP, a page, `serve deploy serve/config.yaml`, and `python -m serve.local` for one machine."""

from ray_app.base.extras import require_extra

require_extra("serve", "the online app")
