from wire.topics import *  # noqa: F403
