"""The release of tests/unit/online/test_shard_index.py in one slice only, for tests of other folders."""

import sys
from pathlib import Path

import pytest
import side_world

sys.path.insert(0, str(Path(__file__).parent / "unit" / "online"))

import test_shard_index as shards


class World(shards.World):
    def slice(self, i, num):
        return super().slice(i, num) if num == 1 else None

    def serve(self, num, parts):
        return super().serve(num, parts) if num == 1 else None


def build(folder: Path) -> World:
    with pytest.MonkeyPatch.context() as patch:
        side_world.without_ray(patch, shards.engagement_stage)
        patch.setattr(shards.shard_module, "Student", shards.Student)
        patch.setattr(shards.served_module, "QueryModel", shards.Encoder)
        return World(folder)
