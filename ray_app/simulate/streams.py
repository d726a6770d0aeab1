"""Streams of random numbers that only the simulation draws from, beside the world's (`ray_app.demo.facts.Draw`)."""

from enum import IntEnum


class Stream(IntEnum):
    """One stream each; numbers far from the world's."""

    UNSEEN = 1001
    UNSEEN_QUERY = 1002
    APPEALS = 1003
    LURED = 1004
    LOG_NOISE = 1005
